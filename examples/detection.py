"""Faster R-CNN with two images a step: EUNNet's backbone, batch normalization trained, and batch normalization frozen.

Detectors are trained with one or two images on a device, which is too few for batch statistics. The usual way out is to
freeze those of the pretraining. Here a backbone of 18 layers at half the widths learns to classify single digits, 32 a
step. Then torchvision's Faster R-CNN with a feature pyramid on it learns to find and read digits on noise, two pictures
a step. Both backbones have the same recipe; the control is timm's resnet18 with the same widths after its stem.

    python examples/detection.py            # some minutes; --quick: seconds
"""

from collections import OrderedDict
from collections.abc import Sequence
from copy import deepcopy
from functools import cache
from typing import Any

import torch
from common import Row, Scenes, classifier, compare, finish, fit, parser_of, scenes, start
from timm.layers import freeze_batch_norm_2d
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign, box_iou

import nf_zoo  # noqa: F401  registers the models

ARMS = ('eunnet18', 'resnet18, statistics trained', 'resnet18, statistics frozen')
RATES = (0.003, 0.01, 0.03)
SIDE, CHANNELS = 96, 64


class Pyramid(nn.Module):
    """The four stages of a timm network, strides 4 to 32, with a feature pyramid: (N, 3, H, W) -> maps '0' to '3'."""

    out_channels = CHANNELS

    def __init__(self, body: Any) -> None:
        super().__init__()
        self.body = body
        self.fpn = FeaturePyramidNetwork([body.feature_info[i]['num_chs'] for i in (1, 2, 3, 4)], CHANNELS)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        stages = self.body.forward_intermediates(x, indices=[1, 2, 3, 4], intermediates_only=True)
        return self.fpn(OrderedDict((str(i), stage) for i, stage in enumerate(stages)))


def detector(body: nn.Module) -> FasterRCNN:
    """Faster R-CNN for ten digits, its parts sized for small pictures."""
    return FasterRCNN(
        Pyramid(body),
        rpn_anchor_generator=AnchorGenerator(((16,), (24,), (32,), (48,)), ((0.5, 1.0, 2.0),) * 4),
        box_roi_pool=MultiScaleRoIAlign(['0', '1', '2', '3'], output_size=7, sampling_ratio=2),
        box_head=TwoMLPHead(CHANNELS * 7 * 7, 256),
        box_predictor=FastRCNNPredictor(256, 11),
        min_size=SIDE,
        max_size=SIDE,
        image_mean=[0.0] * 3,  # the pictures are normalised
        image_std=[1.0] * 3,
        rpn_pre_nms_top_n_train=200,
        rpn_post_nms_top_n_train=100,
        rpn_pre_nms_top_n_test=100,
        rpn_post_nms_top_n_test=50,
        box_batch_size_per_image=64,
        box_score_thresh=0.02,
        box_detections_per_img=20,
    )


def average_precision(found: Sequence[dict[str, Tensor]], truth: Scenes, overlap: float = 0.5) -> float:
    """mAP in percent: the area under precision over recall, averaged over the classes that occur.

    A box is right if it overlaps a box of its class that no box of a higher score has taken. Precision at a recall is
    the highest one from there on, as in PASCAL VOC since 2010.
    """
    areas = []
    for digit in range(10):
        total = sum(int((labels == digit).sum()) for labels in truth.labels)
        if not total:
            continue
        hits: list[tuple[float, bool]] = []
        for boxes, labels, answer in zip(truth.boxes, truth.labels, found, strict=True):
            own = boxes[labels == digit]
            free = torch.ones(len(own), dtype=torch.bool)
            mine = answer['labels'] == digit + 1
            for k in answer['scores'][mine].argsort(descending=True).tolist():
                near = box_iou(answer['boxes'][mine][k : k + 1], own)[0] * free if len(own) else torch.zeros(1)
                right = bool(near.max() >= overlap)
                if right:
                    free[near.argmax()] = False
                hits.append((float(answer['scores'][mine][k]), right))
        hits.sort(key=lambda hit: -hit[0])
        right_so_far = torch.tensor([right for _, right in hits], dtype=torch.float64).cumsum(0)
        precision = right_so_far / torch.arange(1, len(hits) + 1)
        best = precision.flip(0).cummax(0).values.flip(0)
        steps = right_so_far.diff(prepend=torch.zeros(1, dtype=torch.float64)) / total
        areas.append(float((best * steps).sum()))
    return 100 * sum(areas) / len(areas)


@torch.no_grad()
def measure(model: FasterRCNN, truth: Scenes) -> float:
    model.eval()
    found = [answer for batch in truth.images.split(10) for answer in model(list(batch))]
    return average_precision(found, truth)


def main(argv: Sequence[str] | None = None) -> list[Row]:
    args = parser_of(__doc__).parse_args(argv)
    width, epochs, pictures, passes = (0.125, 0.05, 4, 1) if args.quick else (0.5, 5, 300, 2)
    train = scenes('train', pictures, SIDE, 1, sizes=(20, 40))
    validation = scenes('validation', pictures // 3 + 1, SIDE, 2, sizes=(20, 40))
    pretrained = cache(lambda name: classifier(name, width, epochs, 20 if args.quick else None))

    def run(arm: str, lr: float, seed: int) -> float:
        name, _, form = arm.partition(', ')
        body = deepcopy(pretrained(name))
        torch.manual_seed(seed)
        model = detector(freeze_batch_norm_2d(body) if form == 'statistics frozen' else body).train()

        def loss(index: Tensor) -> Tensor:
            targets = [{'boxes': train.boxes[i], 'labels': train.labels[i] + 1} for i in index.tolist()]
            return sum(model(list(train.images[index]), targets).values(), torch.zeros(()))

        fit(model, loss, pictures, 2, passes, lr, f'{arm}, rate {lr:g}, seed {seed}')
        return measure(model, validation)

    rates = RATES[:1] if args.quick else RATES
    return finish(compare(ARMS, rates, 1, run, 'mAP at 0.5'), args.output)


if __name__ == '__main__':
    start(main)
