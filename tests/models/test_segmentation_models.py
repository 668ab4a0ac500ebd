"""segmentation_models_pytorch takes every network in the ImageNet layout as an encoder: ``tu-NAME``."""

import pytest
import torch

import nf_zoo  # noqa: F401  registers the models


@pytest.mark.parametrize('name', ['eunnet18', 'nf_resnet26', 'nf_regnet_b0', 'wn_resnet18', 'dm_nf_regnet_b0'])
def test_an_encoder(name: str) -> None:
    library = pytest.importorskip('segmentation_models_pytorch', reason='segmentation_models_pytorch is not installed')
    model = library.Unet(f'tu-{name}', encoder_weights=None, classes=3, decoder_use_norm=False)
    assert nf_zoo.is_batch_independent(model)
    masks = model(torch.randn(1, 3, 64, 64))
    assert masks.shape == (1, 3, 64, 64)
    masks.square().mean().backward()
    unused = [key for key, p in model.encoder.named_parameters() if p.grad is None]
    assert not unused
