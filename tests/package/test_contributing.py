"""The worked example of CONTRIBUTING.md: its page and one import are all that a new method needs."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

from forked import python

ROOT = Path(__file__).resolve().parents[2]

CHECK = """
import warnings
warnings.simplefilter('error')
warnings.simplefilter('ignore', FutureWarning)
import timm, torch, nf_zoo
from nf_zoo.cli.main import main

(name,) = nf_zoo.list_models('rezero*')
model = timm.create_model(name, depths=(1, 2, 1), drop_path_rate=0.1, attn_layer='se')
model = timm.create_model(name, depths=(1, 2, 1))
x = torch.randn(3, 3, 32, 32)
identity = model.stages(model.stem(x))
for block in (block for stage in model.stages for block in stage):
    torch.nn.init.ones_(block.scale)
assert not torch.equal(model.stages(model.stem(x)), identity)
model(x).square().sum().backward()
assert all(p.grad.abs().sum() > 0 for p in model.parameters())
model.eval()
assert torch.allclose(torch.jit.script(model)(x), model(x), atol=1e-5)
assert [f.shape[1] for f in timm.create_model(name, features_only=True)(x)] == [16, 32, 64]
main(['list', 'rezero'])
main(['info', name])
"""


def test_the_worked_example(tmp_path: Path) -> None:
    code = re.search(r'```python\n(.*?)```', (ROOT / 'CONTRIBUTING.md').read_text(encoding='utf-8'), re.DOTALL)
    assert code
    package = tmp_path / 'nf_zoo'
    shutil.copytree(ROOT / 'nf_zoo', package, ignore=shutil.ignore_patterns('__pycache__'))
    (package / 'models' / 'rezero.py').write_text(code[1], encoding='utf-8')
    init = package / '__init__.py'
    init.write_text(init.read_text(encoding='utf-8').replace('    rescalenet,\n', '    rescalenet,\n    rezero,\n', 1))
    done = python('-c', CHECK, cwd=tmp_path, anew=True)
    assert 'Bachlechner et al. 2021' in done.stdout and 'rezero_resnet20_cifar' in done.stdout
    files = [package / 'models' / 'rezero.py', '--config', ROOT / 'pyproject.toml']
    for command in (['format', '--check'], ['check']):
        subprocess.run([sys.executable, '-m', 'ruff', *command, *map(str, files)], check=True, capture_output=True)
