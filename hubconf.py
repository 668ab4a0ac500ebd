"""torch.hub entry points: `torch.hub.load(REPOSITORY, 'eunnet20_cifar', pretrained=True)`, keywords as in timm."""

import timm

import nf_zoo

dependencies = ['torch', 'torchvision', 'timm', 'huggingface_hub', 'safetensors', 'yaml']

globals().update({name: timm.model_entrypoint(name) for name in nf_zoo.list_models()})
