"""What all exports share: checks before the export, facts in the file, comparison with PyTorch, report."""

import hashlib
import math
import os
from collections import Counter
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CheckFailed, UserError
from ..files import tensor_bytes, write_whole
from ..folding.network import fold as fold_model
from ..hub import weights
from ..hub.folder import open_folder
from ..inference.loading import class_names
from ..net.registry import list_models
from ..train.data.config import data_config
from .images import Images

BATCHES = (2, 1, 5)  # images at once in the comparison; the exporters see the first


@dataclass(frozen=True)
class ExportReport:
    """What was written.

    Attributes:
        ops: How often each operator occurs, and ``nodes`` of them in all. Empty for a compiled library.
        max_abs_diff: Largest difference of any output from the original network in PyTorch, over all batches.
        max_rel_diff: The same as a part of the batch's largest output, or of 1 if that is less.
        tolerance: The largest ``max_rel_diff`` that was allowed.
        bytes: Size of the file.
        input_size: Channels, height and width of an image.
        batch_sizes: Images at once in the comparison.
        images: How many real images were compared; 0 if it was noise.
        top1: Accuracy in percent before and after, and the number of images; None unless the folders of the images are
            the model's classes.
    """

    ops: dict[str, int]
    nodes: int
    max_abs_diff: float
    max_rel_diff: float
    tolerance: float
    bytes: int
    input_size: tuple[int, int, int]
    batch_sizes: tuple[int, ...]
    images: int = 0
    top1: tuple[float, float, int] | None = None

    def __str__(self) -> str:
        on = f'{self.images} images' if self.images else 'noise'
        difference = f'{self.max_rel_diff:.1e} of the largest output, at most {self.tolerance:g} is allowed'
        lines = [
            f'{self.bytes:,} bytes, {self.nodes} nodes',
            '  '.join(f'{op} {number}' for op, number in self.ops.items()),
            f'largest difference from PyTorch: {difference} ({self.max_abs_diff:.1e} absolute, on {on})',
        ]
        if self.top1:
            lines.append('top-1: {:.2f} % before, {:.2f} % after, of {} images'.format(*self.top1))
        return '\n'.join(lines)


class Case:
    """One export: the network to write, the network to compare it with, and the inputs of both.

    Raises:
        UserError: a model, size, folder of images or path that can't be exported.
    """

    def __init__(
        self,
        model: nn.Module,
        path: str | Path,
        input_size: Sequence[int] | None,
        fold: bool,
        tolerance: float,
        images: str | Path | None,
        dynamic_batch: bool = True,
        dynamic_size: bool = False,
    ):
        if not isinstance(model, nn.Module) or isinstance(model, torch.jit.ScriptModule):
            raise UserError("can't export this; give the PyTorch model itself, as timm.create_model returns it")
        if model.training:
            raise UserError('the model is in training mode; call model.eval() first')
        self.path = writable(path)
        tensors = [*model.parameters(), *model.buffers()]
        if any(t.is_meta for t in tensors):
            raise UserError("the model is on the device 'meta' and has no weights to export")
        if any(t.is_floating_point() and t.dtype != torch.float32 for t in tensors):
            raise UserError('only float32 models are exported; give model.float()')
        self.name = type(model).__name__
        self.tolerance = tolerance
        self.original = deepcopy(model).cpu()
        self.network = fold_model(self.original) if fold else self.original
        self.facts = _facts(self.original, input_size)
        self.images = Images(images, self.facts) if images is not None else None
        self.batch_sizes = BATCHES if dynamic_batch else (1,)
        channels, height, width = self.facts['input_size']
        shapes = [(n, channels, height, width) for n in self.batch_sizes]
        if dynamic_size:
            shapes.append((self.batch_sizes[-1], channels, height * 5 // 4, width * 3 // 2))
        self.inputs = self.images.batches(shapes) if self.images else _noise(shapes)
        self.expected = [self._expect(x) for x in self.inputs]

    def _expect(self, x: Tensor) -> list[Tensor]:
        try:
            with torch.inference_mode():
                return outputs(self.original(x))
        except RuntimeError as error:
            size = 'x'.join(map(str, x.shape[1:]))
            raise UserError(f"{self.name} can't take {size} images: {first_line(error)}") from None

    def refuse(self, error: Exception, done: str = 'exported') -> UserError:
        """The exporter's error as one line."""
        return UserError(f"{self.name} can't be {done}: {first_line(error)}")

    def finish(self, data: bytes, ops: Counter[str], run: Callable[[Tensor], list[Tensor]]) -> ExportReport:
        """Compare, write, report. ``run`` gives the outputs of the exported network.

        Raises:
            CheckFailed: they differ by more than the tolerance; nothing is written.
        """
        worst = relative = 0.0
        for x, expected in zip(self.inputs, self.expected, strict=True):
            for y, z in zip(run(x), expected, strict=True):
                gap = (y - z).abs().max().item() if y.shape == z.shape else math.inf
                unit = max(1.0, z.abs().max().item())
                worst, relative = max(worst, gap), max(relative, gap / unit)
                allowed = self.tolerance * unit
                if not gap <= allowed:  # NaN too
                    raise CheckFailed(
                        f'nothing written to {self.path}: for {len(x)} images the exported network differs from '
                        f'PyTorch by {gap:.1e}, more than {allowed:.1e} (tolerance {self.tolerance:g})'
                    )
        top1 = self._top1(run) if self.images and self.images.labels and len(self.expected[0]) == 1 else None
        write_whole(self.path, data)
        return ExportReport(
            ops=dict(ops.most_common()),
            nodes=ops.total(),
            max_abs_diff=worst,
            max_rel_diff=relative,
            tolerance=self.tolerance,
            bytes=len(data),
            input_size=self.facts['input_size'],
            batch_sizes=self.batch_sizes,
            images=min(sum(map(len, self.inputs)), len(self.images.files)) if self.images else 0,
            top1=top1,
        )

    def _top1(self, run: Callable[[Tensor], list[Tensor]]) -> tuple[float, float, int]:
        assert self.images
        right = [0, 0]
        n, size = len(self.images.files), max(self.batch_sizes)
        for start in range(0, n, size):
            x, labels = self.images.labelled(start, size)
            for i, (y,) in enumerate((self._expect(x), run(x))):
                right[i] += int((y.argmax(1) == labels).sum())
        return 100 * right[0] / n, 100 * right[1] / n, n


def writable(path: str | Path) -> Path:
    """Return ``path``. Raises `UserError` if it is a folder, or if no file can be written there."""
    if Path(path).is_dir():
        raise UserError(f'{path} is a folder; give the name of a file')
    folder = next(p for p in Path(path).absolute().parents if p.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UserError(f'cannot write {path}: {folder} is {"read-only" if folder.is_dir() else "not a folder"}')
    return Path(path)


def outputs(y: Tensor | Sequence[Tensor]) -> list[Tensor]:
    """What a network returns as a list: its one output, or its features."""
    return [y] if isinstance(y, Tensor) else list(y)


def first_line(error: Exception) -> str:
    """The first line of an exporter's message, which goes on with a stack trace; at most 200 characters."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200]


def _noise(shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def _facts(model: nn.Module, input_size: Sequence[int] | None) -> dict[str, Any]:
    """The metadata: what a program needs to prepare an image and to name the classes."""
    from .. import __version__

    cfg: dict[str, Any] = getattr(model, 'pretrained_cfg', None) or {}
    if input_size is None and 'input_size' not in cfg:
        raise UserError(
            f'{type(model).__name__} has no pretrained_cfg that says the size of its images; give input_size'
        )
    data = data_config(model)
    given = data['input_size'] if input_size is None else input_size
    size = tuple(given) if isinstance(given, Sequence) else (given,)
    channels = getattr(model, 'in_chans', None)
    if len(size) != 3 or any(not isinstance(n, int) or n < 1 for n in size):
        raise UserError(f'input_size={size}: give channels, height and width in pixels')
    if input_size is None:
        size = (channels or size[0], *size[1:])
    elif size[0] != (channels or size[0]):
        raise UserError(f'input_size={size}: the model takes {channels} channels, so give {(channels, *size[1:])}')
    names = class_names(model) if getattr(model, 'num_classes', 0) else []
    # The hash of the file model.safetensors that a run would write, so that published weights can be recognised.
    sha256 = hashlib.sha256(tensor_bytes(model.state_dict())).hexdigest()
    facts: dict[str, Any] = dict(
        model=cfg.get('architecture') or type(model).__name__,
        tag=cfg.get('tag'),
        input_size=size,
        **_per_channel(data, size[0]),
        interpolation=data['interpolation'],
        crop_pct=data['crop_pct'],
        crop_mode=data['crop_mode'],
        num_classes=len(names) or None,
        class_names=None if names == [str(index) for index in range(len(names))] else names,
        weights_sha256=sha256,
        manifest_sha256=_manifest_sha256(cfg.get('architecture'), cfg.get('tag'), sha256),
        nf_zoo_version=__version__,
    )
    return {key: value for key, value in facts.items() if value is not None}


def _per_channel(data: dict[str, Any], channels: int) -> dict[str, tuple[float, ...]]:
    """mean and std, a number for each channel; nothing where the config has them for another number of channels."""
    found = {key: tuple(data[key]) * (channels if len(data[key]) == 1 else 1) for key in ('mean', 'std')}
    return {key: value for key, value in found.items() if len(value) == channels}


def _manifest_sha256(name: str | None, tag: str | None, sha256: str) -> str | None:
    """The hash of the manifest that these weights were published with; None if they weren't published."""
    if not name or not tag or name not in list_models(f'{name}*'):
        return None
    try:
        found = weights.find(name, tag)
        folder = open_folder(found) if found else None
    except (UserError, CheckFailed, OSError):  # the export doesn't depend on a hub
        return None
    if folder is None or folder.manifest['sha256'] != sha256:
        return None
    return hashlib.sha256(folder.manifest_bytes).hexdigest()
