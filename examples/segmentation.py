"""Semantic segmentation at output stride 16, two images a step: NF-ResNet-26 against batch normalization.

Brock et al. (appendix H.1) put a fully convolutional head on a classifier whose last stage is dilated. Here
NF-ResNet-26 and timm's resnet26, at half the widths, learn to classify single digits, 32 a step. Then each, with the
same head, learns to say of every pixel which digit it belongs to, two pictures a step.

    python examples/segmentation.py            # some minutes; --quick: seconds
"""

from collections.abc import Sequence
from functools import cache

import torch
from common import Row, Scenes, classifier, compare, finish, fit, network, parser_of, scenes, start
from timm.layers import freeze_batch_norm_2d
from torch import Tensor, nn
from torch.nn import functional as F

import nf_zoo  # noqa: F401  registers the models

ARMS = ('nf_resnet26', 'resnet26, statistics trained', 'resnet26, statistics frozen')
RATES = (0.01, 0.03, 0.1)
SIDE, CLASSES = 96, 11  # ten digits and what is none


class FCN(nn.Module):
    """A 3x3 convolution and a classifier on the last features, enlarged to the picture: (N, 3, H, W) -> (N, 11, H, W).

    The head has no normalization, so that only the backbones differ.
    """

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.head = nn.Sequential(
            nn.Conv2d(body.num_features, 128, 3, padding=1), nn.ReLU(), nn.Conv2d(128, CLASSES, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        logits = self.head(self.body.forward_features(x))
        return F.interpolate(logits, size=x.shape[-2:], mode='bilinear')


def at_stride_16(model: nn.Module, name: str, width: float) -> nn.Module:
    """The same weights in the network whose last stage is dilated instead of strided."""
    dilated = network(name, width, output_stride=16)
    dilated.load_state_dict(model.state_dict())
    return dilated


@torch.no_grad()
def mean_iou(model: nn.Module, truth: Scenes) -> float:
    """Intersection over union in percent, averaged over the classes, from the pixels of all pictures together."""
    model.eval()
    counts = torch.zeros(CLASSES, CLASSES)
    for images, masks in zip(truth.images.split(10), truth.masks.split(10), strict=True):
        pairs = CLASSES * masks + model(images).argmax(1)
        counts += pairs.flatten().bincount(minlength=CLASSES**2).view(CLASSES, CLASSES)
    both = counts.diag()
    either = counts.sum(0) + counts.sum(1) - both
    return 100 * (both / either)[either > 0].mean().item()


def main(argv: Sequence[str] | None = None) -> list[Row]:
    args = parser_of(__doc__).parse_args(argv)
    width, epochs, pictures, passes = (0.125, 0.05, 4, 1) if args.quick else (0.5, 5, 300, 5)
    train = scenes('train', pictures, SIDE, 1, sizes=(40, 64))
    validation = scenes('validation', pictures // 4, SIDE, 2, sizes=(40, 64))
    pretrained = cache(lambda name: classifier(name, width, epochs, 20 if args.quick else None))

    def run(arm: str, lr: float, seed: int) -> float:
        name, _, form = arm.partition(', ')
        body = at_stride_16(pretrained(name), name, width)
        torch.manual_seed(seed)
        model = FCN(freeze_batch_norm_2d(body) if form == 'statistics frozen' else body).train()

        def loss(index: Tensor) -> Tensor:
            return F.cross_entropy(model(train.images[index]), train.masks[index])

        fit(model, loss, pictures, 2, passes, lr, f'{arm}, rate {lr:g}, seed {seed}')
        return mean_iou(model, validation)

    rates = RATES[:1] if args.quick else RATES
    return finish(compare(ARMS, rates, 1, run, 'mean IoU'), args.output)


if __name__ == '__main__':
    start(main)
