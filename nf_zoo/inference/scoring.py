"""``nf-zoo evaluate``: accuracy of weights or of a run, as a whole and by class, also folded and as an ONNX file."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import CheckFailed, UserError, extra, one_line
from ..files import write_whole
from ..folding.network import fold as fold_model
from ..text import clean, columns
from ..train import allocator
from ..train.build import open_device
from ..train.evaluation import BINS, accuracies, gaps, validation
from ..train.run_folder import read_recipe
from .loading import resolve

SAME = 1e-3  # of the largest logit: float32 sums in another order
Forward = Callable[[Tensor], Tensor]


@dataclass
class Score:
    """What a form of a model reached on a data set, and the confusion matrix."""

    confusion: Tensor  # (classes, classes) images by true class and prediction
    hits5: int = 0
    loss_sum: float = 0.0
    gaps: Tensor = field(default_factory=lambda: torch.zeros(BINS, dtype=torch.float64))
    difference: float = 0.0  # largest one of a logit from the model's, relative to its largest logit
    allowed: float = 0.0  # how large that may be
    others: int = 0  # images with another prediction than the model's
    names: list[str] = field(default_factory=list)

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Count a batch: logits (N, classes) and true classes (N,)."""
        answers = logits.argmax(1)
        self.confusion += torch.bincount(
            labels * len(self.confusion) + answers, minlength=self.confusion.numel()
        ).view_as(self.confusion)
        self.hits5 += int((logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]).sum())
        self.gaps += gaps(logits, labels).cpu()
        self.loss_sum += float(F.cross_entropy(logits.double(), labels, reduction='sum'))

    @property
    def n(self) -> int:
        """The number of images."""
        return int(self.confusion.sum())

    def metrics(self) -> dict[str, float]:
        """top1 and top5 in percent, mean cross-entropy loss, calibration error ``ece`` in percent, and n."""
        hits = int(self.confusion.diagonal().sum())
        return accuracies(hits, self.hits5, self.loss_sum, *self.gaps.tolist(), self.n)

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


@dataclass
class EvaluateReport:
    """The scores of a model and of its other forms ('folded', an ONNX file's path) on a data set."""

    name: str
    dataset: str
    own: Score
    forms: dict[str, Score]

    def __str__(self) -> str:
        found = self.own.metrics()
        correct = int(self.own.confusion.diagonal().sum())
        top1 = f'top-1 {found["top1"]:.2f} % ({correct} of {found["n"]})'
        # Among five classes or fewer, the five best are all of them.
        top5 = f', top-5 {found["top5"]:.2f} %' if len(self.own.confusion) > 5 else ''
        lines = [f'{self.name} on {self.dataset}: {top1}{top5}, loss {found["loss"]:.4f}']
        lines[0] += f', calibration error {found["ece"]:.2f} %'
        for name, form in self.forms.items():
            top1 = f'top-1 {form.metrics()["top1"]:.2f} %, {form.others} other predictions'
            lines.append(
                f'{name}: {top1}, logits differ by {form.difference:.1e} of the largest, '
                f'at most {form.allowed:g} is allowed'
            )
        return '\n'.join(map(clean, lines))

    def class_table(self) -> str:
        """A row for each class: its images, top-1, and what it was taken for most often."""
        rows = [
            [
                row['class'],
                str(row['n']),
                '' if row['top1'] is None else f'{row["top1"]:.2f}',
                f'{row["taken_for"]} ({row["images"]})' if 'taken_for' in row else '',
            ]
            for row in self.own.by_class()
        ]
        return '\n'.join(columns(['class', 'images', 'top-1 %', 'most often taken for'], rows, right=(1, 2)))

    def as_dict(self) -> dict[str, Any]:
        """What JSON shows."""
        forms = {
            name: {**form.metrics(), 'difference': form.difference, 'allowed': form.allowed}
            for name, form in self.forms.items()
        }
        return self.own.metrics() | ({'forms': forms} if forms else {}) | {'classes': self.own.by_class()}


@allocator.keep_freed()
@torch.inference_mode()
def score(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], classes: Sequence[str], forms: dict[str, Forward]
) -> dict[str, Score]:
    """`Score` of the model ('') and of each of its other ``forms`` on the same batches.

    Raises:
        CheckFailed: a logit is NaN or infinite, or a form's logits aren't the model's.
        UserError: a form has another number of classes, or there are no images.
    """
    model.eval()
    size = int(model.num_classes)  # type: ignore[arg-type]
    names = [*classes, *(str(i) for i in range(len(classes), size))]
    found = {name: Score(torch.zeros(size, size, dtype=torch.int64), names=names) for name in ('', *forms)}
    for x, labels in batches:
        labels = labels.cpu()
        own = model(x).float().cpu()
        if not own.isfinite().all():
            raise CheckFailed('the model gives NaN or infinity: its weights are damaged')
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
    if not found[''].n:
        raise UserError('the data set has no images to score')
    for name, form in forms.items():
        allowed = found[name].allowed = form.tolerance if isinstance(form, OnnxFile) else SAME
        if not found[name].difference <= allowed:  # NaN too
            raise CheckFailed(
                f'{name} differs from the model by {found[name].difference:.1e} of the largest logit '
                f'(at most {allowed:g} is allowed) and in {found[name].others} of {found[name].n} predictions'
            )
    return found


def load(name: str) -> tuple[nn.Module, str | None, dict[str, Any]]:
    """The model that ``name`` stands for (see `resolve`), the data set of its weights, and of a run the recipe.

    Raises `UserError` and `CheckFailed` as `resolve` does.
    """
    source = resolve(name)
    recipe = read_recipe(Path(name)).as_dict() if source.kind == 'run' else {}
    return source.load(), source.dataset, recipe


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
            raise UserError(f'{path} is no ONNX file that runs: {one_line(error)[:300]}') from None
        self.path = path
        self.tolerance = max(SAME, _tolerance(self.session.get_modelmeta().custom_metadata_map))

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


def draw_confusion(path: Path, report: EvaluateReport) -> None:
    """The confusion matrix as a picture, in percent of each class's images. Raises `UserError` without matplotlib."""
    figures, canvas = (extra(f'matplotlib.{name}', 'plot') for name in ('figure', 'backends.backend_agg'))
    found = report.own
    share = 100 * found.confusion / found.confusion.sum(1, keepdim=True).clamp(min=1)
    count = len(share)
    side = min(4 + 0.35 * count, 16)
    figure = figures.Figure(figsize=(side + 1, side), layout='constrained')
    canvas.FigureCanvasAgg(figure)
    axes = figure.subplots()
    image = axes.imshow(share.numpy(), cmap='Blues', vmin=0, vmax=100)
    figure.colorbar(image, label='% of the images of a class')
    # A name with a dollar sign would be taken for a formula.
    names = [clean(name).replace('$', r'\$') for name in found.names]
    accuracy = f'top-1 {found.metrics()["top1"]:.2f} % of {found.n} images'
    title = f'{clean(report.name)} on {clean(report.dataset)}'.replace('$', r'\$')
    axes.set(xlabel='prediction', ylabel='true class', title=f'{title}\n{accuracy}')
    if count <= 40:
        axes.set_xticks(range(count), names, rotation=90)
        axes.set_yticks(range(count), names)
    if count <= 20:
        for (row, column), value in zip(
            torch.cartesian_prod(*[torch.arange(count)] * 2).tolist(), share.flatten(), strict=True
        ):
            if value >= 0.5:
                colour = 'white' if value > 50 else 'black'
                axes.text(column, row, f'{value:.0f}', ha='center', va='center', color=colour)
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
) -> EvaluateReport:
    """Score NAME, NAME.TAG or a run on a data set, and the forms of it that are asked for.

    Args:
        name: What `load` takes.
        dataset: As in a recipe; by default the one that the weights are for.
        data_dir: Its folder; by default the one of the run.
        batch_size: Images at once.
        device: Such as 'cpu' or 'cuda'; by default the CPU.
        fold: Score the folded network too.
        onnx: An ONNX file of the network to score too.
        download: Let torchvision or timm fetch the data set.
        val_split: The images to score, for folders and timm's sets.

    Raises:
        UserError: bad input.
        CheckFailed: a form differs from the model, or the model gives NaN.
    """
    where = open_device(device or 'cpu')
    model, known, recipe = load(name)
    if val_split:
        recipe = recipe | {'val_split': val_split}
    dataset = dataset or known
    if not dataset:
        raise UserError(f"the weights of '{name}' name no data set; give one, such as --dataset cifar10")
    forms: dict[str, Forward] = {}
    if onnx:  # before the data is read: what can't work is said at once
        forms[onnx] = OnnxFile(onnx)
    same = dataset == known
    data_dir = data_dir or (recipe.get('data_dir') if same else None)
    options: dict[str, Any] = dict(batch_size=batch_size, device=where, download=download, recipe=recipe)
    batches, classes = validation(model, dataset, data_dir, **options)
    if fold:
        forms['folded'] = fold_model(model)
    words = getattr(model, 'pretrained_cfg', {}).get('label_descriptions') or {}
    scores = score(model, batches, [words.get(name, name) for name in classes], forms)
    return EvaluateReport(name, dataset, scores.pop(''), scores)
