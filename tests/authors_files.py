"""Files in the authors' layouts, made from random tensors, for tests."""

import functools

import torch
from oracle import random_state


def classification_layout(state):
    """Entries named as the authors' classification code names them, from those of their detection code."""
    renamed = {}
    for key, tensor in state.items():
        head, rest = key.split('.', 1)
        if head.startswith('stem'):
            layer, entry = rest.split('.')
            renamed[f'features.{dict(conv="conv", bn1="norm")[layer]}{head[4:]}.{entry}'] = tensor
        elif head.startswith('hybridblock'):
            module, rest = rest.split('.', 1)
            renamed[f'features.{head}.SMG{int(module) + 1}.{rest.replace("bn1", "norm")}'] = tensor
        elif head.startswith('transition'):
            renamed[f'features.transition{int(head[10:]) - 1}.{rest.replace("bn1", "norm")}'] = tensor
        else:
            renamed[f'features.norm5.{rest}'] = tensor
    return renamed


def detection_layout(state, classes=80, seed=1):
    """Entries of MMDetection 1's Mask R-CNN around a backbone: background class first, heads at the top."""
    channels = [state[f'transition{i}.conv1_1x1.bn1.weight'].numel() for i in (2, 3, 4)]
    shapes = {
        f'neck.lateral_convs.{i}.conv': (256, c, 1, 1)
        for i, c in enumerate([*channels, len(state['bn1.bias'])])
    }
    shapes |= {f'neck.fpn_convs.{i}.conv': (256, 256, 3, 3) for i in range(4)}
    shapes |= {
        'rpn_head.rpn_conv': (256, 256, 3, 3),
        'rpn_head.rpn_cls': (3, 256, 1, 1),
        'rpn_head.rpn_reg': (12, 256, 1, 1),
        'bbox_head.fc_cls': (1 + classes, 1024),
        'bbox_head.fc_reg': (4 * (1 + classes), 1024),
        'bbox_head.shared_fcs.0': (1024, 12544),
        'bbox_head.shared_fcs.1': (1024, 1024),
        **{f'mask_head.convs.{i}.conv': (256, 256, 3, 3) for i in range(4)},
        'mask_head.upsample': (256, 256, 2, 2),
        'mask_head.conv_logits': (1 + classes, 256, 1, 1),
    }
    g = torch.Generator().manual_seed(seed)
    heads = {}
    for layer, shape in shapes.items():
        heads[f'{layer}.weight'] = torch.randn(shape, generator=g) / (shape[1] * 3) ** 0.5
        heads[f'{layer}.bias'] = torch.randn(shape[0], generator=g) * 0.1
    return {**{f'backbone.{name}': tensor for name, tensor in state.items()}, **heads}


@functools.cache
def backbone_entries(arch='b'):
    """In the authors' detection layout."""
    return random_state(arch, dtype=torch.float32)


def classification_file(arch='b'):
    state = {name: tensor.clone() for name, tensor in backbone_entries(arch).items()}
    channels = state['bn1.weight'].numel()
    classifier = {'classifier.weight': torch.zeros(1000, channels), 'classifier.bias': torch.zeros(1000)}
    return {**classification_layout(state), **classifier}
