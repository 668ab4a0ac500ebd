"""``nf-zoo evaluate``: accuracy of weights or of a run, as a whole and by class, also folded and as an ONNX file."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import CheckFailed, UserError, extra
from ..files import write_whole
from ..train.evaluation import accuracies, validation

TOLERANCE = 1e-3  # of the largest logit: float32 sums in another order
Forward = Callable[[Tensor], Tensor]


@dataclass
class Score:
    """What a form of a model reached on a data set, and which classes it took for which."""

    confusion: Tensor  # (classes, classes) images by label and answer
    hits5: int = 0
    loss_sum: float = 0.0
    difference: float = 0.0  # largest one of a logit from the model's, relative to its largest logit
    others: int = 0  # images with another answer than the model's
    names: list[str] = field(default_factory=list)

    def add(self, logits: Tensor, labels: Tensor) -> None:
        answers = logits.argmax(1)
        self.confusion += torch.bincount(
            labels * len(self.confusion) + answers, minlength=self.confusion.numel()
        ).view_as(self.confusion)
        self.hits5 += int((logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]).sum())
        self.loss_sum += float(F.cross_entropy(logits.double(), labels, reduction='sum'))

    @property
    def n(self) -> int:
        return int(self.confusion.sum())

    def metrics(self) -> dict[str, float]:
        return accuracies(int(self.confusion.diagonal().sum()), self.hits5, self.loss_sum, self.n)

    def by_class(self) -> list[dict[str, Any]]:
        """For each class: its name, images, top1 in percent, and the wrong answer given most often with its images."""
        rows: list[dict[str, Any]] = []
        for name, row, hits in zip(self.names, self.confusion, self.confusion.diagonal().tolist(), strict=True):
            n = int(row.sum())
            wrong = row.clone()
            wrong[len(rows)] = 0
            most = int(wrong.argmax())
            taken = {'taken_for': self.names[most], 'images': int(wrong[most])} if wrong[most] else {}
            rows.append({'class': name, 'n': n, 'top1': 100 * hits / n if n else None, **taken})
        return rows


@torch.inference_mode()
def score(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], classes: Sequence[str], forms: dict[str, Forward]
) -> dict[str, Score]:
    """`Score` of the model ('') and of each of its other ``forms`` on the same batches.

    Raises `CheckFailed` when a form's logits aren't the model's.
    """
    model.eval()
    size = int(model.num_classes)  # type: ignore[arg-type]
    names = [*classes, *(str(i) for i in range(len(classes), size))]
    found = {name: Score(torch.zeros(size, size, dtype=torch.int64), names=names) for name in ('', *forms)}
    for x, labels in batches:
        labels = labels.cpu()
        own = model(x).float().cpu()
        found[''].add(own, labels)
        for name, form in forms.items():
            logits = form(x).float().cpu()
            if logits.shape != own.shape:
                raise UserError(
                    f'{name} gives {logits.shape[1]} classes, the model {own.shape[1]}: not the same network'
                )
            one = found[name]
            one.add(logits, labels)
            gap = float((logits - own).abs().max() / own.abs().max().clamp(min=1e-12))
            one.difference = one.difference if gap <= one.difference else gap  # a NaN stays
            one.others += int((logits.argmax(1) != own.argmax(1)).sum())
    for name, form in forms.items():
        allowed = form.tolerance if isinstance(form, OnnxFile) else TOLERANCE
        if not found[name].difference <= allowed:  # NaN too
            raise CheckFailed(
                f'{name} differs from the model by {found[name].difference:.1e} of the largest logit '
                f'(at most {allowed:g}) and in {found[name].others} of {found[name].n} answers'
            )
    return found


def load(name: str) -> tuple[nn.Module, str | None, dict[str, Any]]:
    """The model of a name, or of a finished run's folder, the data set that it is for, and the run's recipe.

    Raises `UserError`.
    """
    from .loading import resolve

    source = resolve(name)
    recipe = source.facts.get('recipe') or {}
    return source.load(), source.dataset, dict(recipe) if source.kind == 'run' else {}


def folded(model: nn.Module) -> Forward:
    from ..folding.network import fold

    return fold(model)


class OnnxFile:
    """The network in an ONNX file, on the CPU, and how far its logits may be from the model's.

    Raises `UserError`: not there, no network, or no ONNX Runtime.
    """

    def __init__(self, path: str | Path):
        onnxruntime = extra('onnxruntime', 'export')
        if not Path(path).is_file():
            raise UserError(f'{path}: no such file; `nf-zoo export` writes one')
        try:
            self.session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
        except Exception as error:  # ONNX Runtime has a class of its own for each code
            raise UserError(f'{path} is no ONNX file that runs: {str(error).splitlines()[0]}') from None
        self.path = path
        self.tolerance = max(TOLERANCE, _tolerance(self.session.get_modelmeta().custom_metadata_map))

    def __call__(self, x: Tensor) -> Tensor:
        (entry, *_) = self.session.get_inputs()
        want, have = entry.shape[1:], list(x.shape[1:])
        if any(isinstance(w, int) and w != h for w, h in zip(want, have, strict=True)):
            raise UserError(f'{self.path} takes images of {want} (channels, height, width), the data set gives {have}')
        batch = entry.shape[0] if isinstance(entry.shape[0], int) else None
        parts = x.cpu().numpy()
        rows = []
        for start in range(0, len(parts), batch or len(parts)):
            part = parts[start : start + (batch or len(parts))]
            n = len(part)
            if batch and n < batch:
                part = part.repeat(-(-batch // n), 0)[:batch]
            rows.append(torch.from_numpy(self.session.run(None, {entry.name: part})[0][:n]))
        return torch.cat(rows)


def _tolerance(metadata: dict[str, str]) -> float:
    """What the export allowed, as a part of the largest output; 0 where the file doesn't say it.

    At most 1: a file from elsewhere can't declare that any answer agrees.
    """
    try:
        allowed = float(metadata.get('tolerance', 0))
    except ValueError:
        return 0.0
    return min(allowed, 1.0) if allowed > 0 else 0.0  # NaN too


def draw_confusion(path: Path, score: Score, title: str) -> None:
    """A picture of who was taken for whom, in percent of each class's images. Raises `UserError` without matplotlib."""
    Figure = extra('matplotlib.figure', 'plot').Figure
    FigureCanvasAgg = extra('matplotlib.backends.backend_agg', 'plot').FigureCanvasAgg
    share = 100 * score.confusion / score.confusion.sum(1, keepdim=True).clamp(min=1)
    count = len(share)
    side = min(4 + 0.35 * count, 16)
    figure = Figure(figsize=(side + 1, side), layout='constrained')
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    image = axes.imshow(share.numpy(), cmap='Blues', vmin=0, vmax=100)
    figure.colorbar(image, label='% of the images of a class')
    axes.set(xlabel='answer', ylabel='label', title=title)
    if count <= 40:
        axes.set_xticks(range(count), score.names, rotation=90)
        axes.set_yticks(range(count), score.names)
    if count <= 20:
        for (row, column), value in zip(
            torch.cartesian_prod(*[torch.arange(count)] * 2).tolist(), share.flatten(), strict=True
        ):
            if value >= 0.5:
                axes.text(
                    column, row, f'{value:.0f}', ha='center', va='center', color='white' if value > 50 else 'black'
                )
    picture = BytesIO()
    figure.savefig(picture, format='png', dpi=120)
    write_whole(path, picture.getvalue())


def evaluate_command(
    name: str,
    dataset: str | None,
    data_dir: str | None,
    *,
    batch_size: int = 256,
    device: str | None = None,
    fold: bool = False,
    onnx: str | None = None,
    download: bool = False,
    val_split: str | None = None,
) -> tuple[str, dict[str, Score]]:
    """The data set, and the scores of NAME or RUN ('') and of the forms asked for ('folded', the ONNX file's path)."""
    model, known, recipe = load(name)
    if val_split:
        recipe = recipe | {'val_split': val_split}
    dataset = dataset or known
    if not dataset:
        raise UserError(f"the weights of '{name}' name no data set; give one, such as --dataset cifar10")
    forms: dict[str, Forward] = {}
    if onnx:  # before the data is read: what can't work is said at once
        forms[onnx] = OnnxFile(onnx)
    options: dict[str, Any] = dict(batch_size=batch_size, device=device, download=download, recipe=recipe)
    batches, classes = validation(model, dataset, data_dir, **options)
    if fold:
        forms['folded'] = folded(model)
    words = getattr(model, 'pretrained_cfg', {}).get('label_descriptions') or {}
    return dataset, score(model, batches, [words.get(name, name) for name in classes], forms)
