# make demo [DATA=DIR]    the package's whole job on real data, three minutes
# make test [DATA=DIR]    lint, types and every test
# make check              lint and types alone
# make soak               every test, the slow ones and many more random examples too
# make kit-test           install the runtimes of export/ (Debian's and npm's packages) and a mirror of the Hub, run their tests
# make gpu-test           the tests that need a GPU; tools/gpu.sh FOLDER measures speed and memory there too
# make contract [FAMILY='eunnet* fixup*']   timm's own model tests on our models
# make recipes TRAIN_PY=FILE [RECIPES='cifar10/*']   timm's own train.py on our recipes, on a few pictures
# make docs               the documentation site in build/site; warnings are errors
# make package            the wheel and the source archive in dist/, checked, installed in an empty environment and used there
# make golden             rewrite nf_zoo/analysis/models.json after a deliberate change
# make conversion         convert the smallest network of every timm module, write the table of docs/conversion.md
# make cards [DATA=DIR]    write the model cards of the bundled weights again; DATA measures what a manifest lacks
# make examples           every example at full size, half an hour; its table is printed and written into results/examples
# make results [RUNS='DIR DIR']   write results/*.csv and the tables of README and RESULTS from the bundled weights; add runs
# All of them make .venv first; it needs Python 3.10 or newer and a package registry.

PYTHON ?= python3
JOBS ?= 2
DATA ?=
FAMILY ?= *
RECIPES ?= *
RUNS ?=
TRAIN_PY ?=
BIN := .venv/bin
OLAH := .venv/olah

# Named after the content and the place, not the time: a checkout or a copy of the folder changes the times.
STAMP := .venv/installed-$(shell (pwd; cat pyproject.toml) | cksum | cut -d' ' -f1)

.DEFAULT_GOAL := test
.PHONY: demo test check soak kit-test gpu-test contract recipes golden conversion examples results cards docs package clean

$(STAMP):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "nf-zoo: error: Python 3.10 or newer is needed: make PYTHON=python3.12 ..." >&2; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@rm -f .venv/installed-* && touch $@

demo: $(STAMP)
	$(BIN)/python -m nf_zoo.demo --output demo-output $(if $(DATA),--data-dir '$(DATA)')

test: check
	$(if $(DATA),NF_ZOO_DATA='$(abspath $(DATA))') $(BIN)/python -m pytest -q -n $(JOBS) --dist worksteal

check: $(STAMP)
	$(BIN)/python -m ruff format --check --quiet
	$(BIN)/python -m ruff check --quiet
	$(BIN)/python -m mypy

soak: $(STAMP)
	$(BIN)/python -m pytest -q -n $(JOBS) --dist worksteal -m 'not kit' --timeout 1800 --hypothesis-profile soak

kit-test: $(STAMP)
	export/install.sh
	@test -x $(OLAH)/bin/olah-cli || \
		{ $(PYTHON) -m venv $(OLAH) && $(OLAH)/bin/python -m pip install --quiet --disable-pip-version-check olah; }
	$(if $(DATA),NF_ZOO_DATA='$(abspath $(DATA))') $(BIN)/python -m pytest -q -m kit

gpu-test: $(STAMP)
	$(BIN)/python -m pytest -q -m gpu tests/gpu

contract: $(STAMP)
	$(BIN)/python tools/contract.py '$(FAMILY)' -n$(JOBS)

recipes: $(STAMP)
	$(BIN)/python tools/timm_train.py '$(TRAIN_PY)' '$(RECIPES)'

golden: $(STAMP)
	$(BIN)/python -m tools.golden

conversion: $(STAMP)
	$(BIN)/python -m tools.conversion

EXAMPLES := private detection segmentation federated online maml

examples: $(STAMP)
	@for name in $(EXAMPLES); do echo; echo "$$name"; \
		$(BIN)/python examples/$$name.py --output results/examples/$$name.md || exit; done

results: $(STAMP)
	$(BIN)/python -m tools.results $(RUNS)

cards: $(STAMP)
	$(BIN)/python -m tools.cards $(if $(DATA),'$(abspath $(DATA))')

docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict

package: $(STAMP)
	$(BIN)/python -m tools.package

clean:
	rm -rf .venv build dist demo-output export/*/node_modules export/cpp/build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
