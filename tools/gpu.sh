#!/usr/bin/env bash
# tools/gpu.sh FOLDER    everything that needs a GPU, in one go: FOLDER/gpu.log and FOLDER/gpu.json
#
# Needs Python with PyTorch, timm and pytest; this checkout needn't be installed. A newer timm can lie in PYTHONPATH.
# A part that fails, or takes longer than its limit, does not keep the others from running: the most important ones come
# first. PYTHON, SECONDS_FACTOR (1; another one lengthens every limit) and GPU_OPTIONS (of tools/gpu.py) can be set.
# BESIDE is a command, a training say, that begins with the tests. Nothing is measured before it has ended.
set -u
out=${1:?give the folder for the log and the results}
mkdir -p "$out"
out=$(cd "$out" && pwd)
cd "$(dirname "$0")/.."
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 TORCHINDUCTOR_CACHE_DIR=${TORCHINDUCTOR_CACHE_DIR:-$(mktemp -d)}
python=${PYTHON:-python3} log=$out/gpu.log json=$out/gpu.json options=${GPU_OPTIONS:-}
: >"$log"

part() { # NAME SECONDS COMMAND ...
  local name=$1 limit=$(($2 * ${SECONDS_FACTOR:-1})) began=$SECONDS code=0
  shift 2
  echo "== $name" | tee -a "$log"
  timeout -k 5 "$limit" "$@" 2>&1 | tee -a "$log"
  code=${PIPESTATUS[0]}
  echo "== $name: exit code $code, $((SECONDS - began)) s" | tee -a "$log"
}

needed=$(grep -o 'timm>=[0-9.]*' pyproject.toml | cut -d= -f2)
found=$("$python" -c 'import timm; print(timm.__version__)') || exit 2
if [ "$(printf '%s\n' "$needed" "$found" | sort -V | head -1)" != "$needed" ]; then
  echo "gpu.sh: timm $found is too old, $needed or newer is needed; a copy of its folder in PYTHONPATH will do" >&2
  exit 2
fi
nvidia-smi 2>&1 | tee -a "$log" | head -15
# The networks compile while the tests run, four at a time, each in a process of its own. They share the memory of one
# card, so their batch is half that of the eager steps.
networks='resnet50 eunnet50 nf_resnet50 wn_resnet50 skipinit_resnet50 fixup_resnet50 rescalenet50 idshort_resnet50 learnscalar_resnet50'
warm() {
  timeout -k 5 $((100 * ${SECONDS_FACTOR:-1})) "$python" -m tools.gpu warm --batch-size 128 --model "$1" $options >"$out/warm-$1.log" 2>&1
}
export -f warm
export python out options
echo $networks | xargs -n 1 -P 4 bash -c 'warm "$0"' &
warming=$!
beside=
if [ -n "${BESIDE:-}" ]; then
  bash -c "$BESIDE" >"$out/beside.log" 2>&1 &
  beside=$!
fi
part tests 150 "$python" -m pytest -q -m gpu tests/gpu -p no:cacheprovider --durations 5 --timeout 100
for _ in $(seq 60); do kill -0 $warming 2>/dev/null || break; sleep 1; done
[ -z "$beside" ] || wait "$beside"
part compiled 110 "$python" -m tools.gpu compiled --batch-size 128 --seconds 90 --json "$json" --model $networks $options
part profile 30 "$python" -m tools.gpu profile --json "$json" $options
part steps 90 "$python" -m tools.gpu steps --seconds 70 --json "$json" $options
