"""Every registered name through one export, as a table."""

import dataclasses
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import CheckFailed, UserError
from ..inference.loading import load_model
from .case import ExportReport
from .formats import SUFFIXES, export

SIDE = 64  # pixels at most: the graph is the same, and the largest networks are done in seconds


@dataclasses.dataclass(frozen=True)
class SurveyRow:
    """The export of one model: its report, or what went wrong."""

    name: str
    seconds: float
    report: ExportReport | None = None
    error: str | None = None

    @staticmethod
    def head(left: int) -> str:
        """The head of a table whose first column has ``left`` characters."""
        return f'{"name":<{left}} {"input":>10} {"nodes":>6} {"diff":>8} {"bytes":>13} {"s":>6}  operators'

    def line(self, left: int) -> str:
        """The row of that table."""
        found = self.report
        if found is None:
            return f'{self.name:<{left}} FAILED: {self.error}'
        size = 'x'.join(map(str, found.input_size))
        ops = ' '.join(f'{op}:{count}' for op, count in found.ops.items())
        numbers = f'{size:>10} {found.nodes:>6} {found.max_rel_diff:>8.1e} {found.bytes:>13,} {self.seconds:>6.1f}'
        return f'{self.name:<{left}} {numbers}  {ops}'

    def as_dict(self) -> dict[str, Any]:
        """What JSON shows: the report's fields, None or empty where the export failed."""
        empty: dict[str, Any] = dict(nodes=0, max_abs_diff=None, max_rel_diff=None, bytes=0, ops={}, input_size=[])
        found = empty if self.report is None else dataclasses.asdict(self.report)
        return {'name': self.name, **found, 'error': self.error, 'seconds': self.seconds}


def survey(
    names: Sequence[str],
    folder: Path,
    format: str,
    *,
    pretrained: bool = False,
    input_size: Sequence[int] | None = None,
    **options: Any,
) -> Iterator[SurveyRow]:
    """Export each of ``names`` into ``folder`` and yield its row as soon as it is done.

    Args:
        names: Registered names.
        folder: Where the files go.
        format: As of `export`, and so are ``options``.
        pretrained: Use the pretrained weights; else random ones, by `randomize`.
        input_size: Channels, height and width; by default the model's own, with at most `SIDE` pixels.
    """
    for name in names:
        start = time.perf_counter()
        report, problem = None, None
        try:
            model = load_model(name, pretrained)
            if not pretrained:
                randomize(model)
            channels, height, width = model.pretrained_cfg['input_size']
            size = input_size or (channels, min(height, SIDE), min(width, SIDE))
            report = export(model, folder / f'{name}{SUFFIXES[format]}', format, input_size=size, **options)
        except (UserError, CheckFailed) as error:
            problem = str(error)
        yield SurveyRow(name, time.perf_counter() - start, report, problem)


@torch.no_grad()
def randomize(model: nn.Module) -> None:
    """Change what starts as 0 or 1 (scalars, gains, biases, the classifier), because 0 and 1 would hide mistakes."""
    generator = torch.Generator().manual_seed(0)
    linear = {f'{name}.weight' for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    for name, parameter in model.named_parameters():
        if name in linear:
            parameter.normal_(std=parameter.shape[1] ** -0.5, generator=generator)
        elif not name.endswith('weight') or parameter.ndim == 1:
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
