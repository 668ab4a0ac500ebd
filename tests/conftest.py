"""Every test runs offline, with empty caches, on one thread, from one seed."""

import gc
import os
import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

# Libraries read these when they are imported, and child processes inherit them.
_home = tempfile.TemporaryDirectory(prefix='nf-zoo-tests-')
os.environ.update(
    HF_HUB_OFFLINE='1', HF_HOME=_home.name, TORCH_HOME=_home.name, MPLCONFIGDIR=_home.name, MPLBACKEND='agg'
)
os.environ.update(OMP_NUM_THREADS='1', TOKENIZERS_PARALLELISM='false')
os.environ.pop('NF_ZOO_HUB', None)

import pytest  # noqa: E402
import torch  # noqa: E402
from hub_server import Hub, serve  # noqa: E402
from hypothesis import settings  # noqa: E402

settings.register_profile('default', deadline=None, derandomize=True, database=None, max_examples=20)
settings.register_profile('soak', deadline=None, database=None, max_examples=1000)
settings.load_profile('default')


def pytest_collection_finish() -> None:
    """What the imports made stays until the end; the garbage collector need not look through it again and again."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    _home.cleanup()


@pytest.fixture(autouse=True)
def _repeatable() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _one_table_of_operators() -> None:
    """Each export to ONNX would parse the sources of all of onnxscript's operators again, for a second."""
    operators = sys.modules.get('onnxscript._framework_apis.torch_2_5')
    if operators and not hasattr(operators.get_torchlib_ops, 'cache_info'):
        operators.get_torchlib_ops = cache(operators.get_torchlib_ops)


@pytest.fixture
def server() -> Iterator[Hub]:
    """A Hugging Face Hub on loopback, with LFS."""
    with serve(storage='lfs') as found:
        yield found


@pytest.fixture(scope='session')
def cifar_dir() -> Path:
    """The folder that torchvision.datasets.CIFAR10 reads; NF_ZOO_DATA names it."""
    folder = Path(os.environ.get('NF_ZOO_DATA', ''))
    if not (folder / 'cifar-10-batches-py').is_dir():
        pytest.skip('CIFAR-10 is not there: set NF_ZOO_DATA to the folder that holds cifar-10-batches-py')
    return folder
