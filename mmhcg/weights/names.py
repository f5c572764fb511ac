"""Every entry of the authors' checkpoints by its name there and here.

The authors published two layouts of the same tensors: the classification code's
(`features.hybridblock1.SMG1.conv1_1x1.norm.weight`) and the detection code's
(`backbone.hybridblock1.0.conv1_1x1.bn1.weight`). Tables follow the order of the modules in the authors' code,
whose loader goes by position and not by name.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator

import torch
from torch import Tensor

from mmhcg.network import Trunk, get_variant

ARCHS = ('b', 'c')  # those with published files
COUNTER = '.num_batches_tracked'  # of a norm; older files lack these

# Layers of an SMG: detection layout, ours.
_SMG = (
    ('conv1_1x1.bn1', 'norm1'),
    ('conv1_1x1.conv', 'conv1'),
    ('conv2_3x3.bn1', 'norm2'),
    ('conv2_3x3.conv', 'conv2'),
    ('conv_3x3.bn1', 'update.pool3.norm'),
    ('conv_3x3.conv', 'update.pool3.depthwise'),
    ('conv_5x5.bn1', 'update.pool5.norm'),
    ('conv_5x5.conv', 'update.pool5.depthwise'),
    ('global_context3x3', 'update.pool3.project'),
    ('global_context5x5', 'update.pool5.project'),
    ('fcall', 'update.squeeze'),
    ('bn_attention', 'update.norm'),
    ('fc3x3', 'update.expand3'),
    ('fc5x5', 'update.expand5'),
    ('global_forget_context', 'forget.pool.project'),
    ('bn_forget', 'forget.norm'),
    ('fc1', 'forget.squeeze'),
    ('fc2', 'forget.expand'),
)
_LINEAR = re.compile(r'(squeeze|expand\d?)\.weight$')  # 1x1 convolutions in the authors' code

# Detection layout -> classification layout. Modules count from 0 there and from 1 here.
_CLASSIFICATION = (
    (r'stem(\d)\.conv', lambda m: f'features.conv{m[1]}'),
    (r'stem(\d)\.bn1', lambda m: f'features.norm{m[1]}'),
    (r'bn1', lambda m: 'features.norm5'),
    (r'hybridblock(\d)\.(\d+)', lambda m: f'features.hybridblock{m[1]}.SMG{int(m[2]) + 1}'),
    (r'transition(\d)', lambda m: f'features.transition{int(m[1]) - 1}'),
)


def backbone_names(arch: str | dict) -> dict[str, str]:
    """Our name of each entry of a trunk -> the authors' in the detection layout, without `backbone.`.

    Of trunks with the stem for ImageNet; for CIFAR the authors published no files.
    """
    variant = get_variant(arch)
    layers = [
        (f'stem{i}.{layer}', f'stem.{i}.{ours}')
        for i in range(3)
        for layer, ours in (('conv', 'conv'), ('bn1', 'norm'))
    ]
    for stage, modules in enumerate(variant.blocks):
        if stage:
            layers += _transition(stage)
        for module in range(modules):
            layers += _smg(f'hybridblock{stage + 1}.{module}', f'stages.{stage}.block.{module}')
    layers.append(('bn1', f'stages.{len(variant.blocks) - 1}.norm'))
    return {
        f'{ours}.{entry}': f'{theirs}.{entry}' for theirs, ours in layers for entry in _entries_of(theirs)
    }


def _smg(theirs: str, ours: str) -> Iterator[tuple[str, str]]:
    return ((f'{theirs}.{their_layer}', f'{ours}.{layer}') for their_layer, layer in _SMG)


def _transition(stage: int) -> Iterator[tuple[str, str]]:
    """Its first norm emits the stage before, so it is that stage's here."""
    for layer, ours in _SMG:
        is_first = layer == 'conv1_1x1.bn1'
        name = f'stages.{stage - 1}.norm' if is_first else f'stages.{stage}.transition.{ours}'
        yield f'transition{stage + 1}.{layer}', name


def _entries_of(layer: str) -> tuple[str, ...]:
    if 'bn' in layer:
        return 'weight', 'bias', 'running_mean', 'running_var', COUNTER[1:]
    return ('weight',) if layer.endswith('.conv') else ('weight', 'bias')


def classification_name(name: str) -> str:
    """An entry's name in the classification layout, from that in the detection layout."""
    for pattern, replacement in _CLASSIFICATION:
        renamed, count = re.subn(rf'^{pattern}(?=\.)', replacement, name)
        if count:
            return renamed.replace('.bn1.', '.norm.')
    raise ValueError(f'no entry of a backbone: {name}')


@functools.cache
def table(kind: str, arch: str, classes: int) -> dict[str, tuple[str, Tensor]]:
    """What a file of this kind holds: our name -> the authors' name, and a tensor of our shape on no device.

    Args:
        kind: 'classification' (the backbone alone) or 'detection' (a Mask R-CNN with FPN).
        arch: 'b' or 'c'.
        classes: Classes that the detector tells apart, background not counted.
    """
    with torch.device('meta'):
        trunk = Trunk(arch)
    state, names = trunk.state_dict(), backbone_names(arch)
    if kind == 'classification':
        return {ours: (classification_name(theirs), state[ours]) for ours, theirs in names.items()}
    backbone = {f'backbone.{ours}': (f'backbone.{theirs}', state[ours]) for ours, theirs in names.items()}
    return {**backbone, **dict(_mask_rcnn_heads(trunk.out_channels, classes))}


def _mask_rcnn_heads(channels: tuple[int, ...], classes: int) -> Iterator[tuple[str, tuple[str, Tensor]]]:
    """Neck and heads. MMDetection 1 had what is below `roi_head.` today at the top level."""
    shapes: dict[str, tuple[int, ...]] = {}
    shapes.update({f'neck.lateral_convs.{i}.conv': (256, c, 1, 1) for i, c in enumerate(channels)})
    shapes.update({f'neck.fpn_convs.{i}.conv': (256, 256, 3, 3) for i in range(len(channels))})
    shapes['rpn_head.rpn_conv'] = (256, 256, 3, 3)
    shapes['rpn_head.rpn_cls'] = (3, 256, 1, 1)
    shapes['rpn_head.rpn_reg'] = (12, 256, 1, 1)
    shapes['roi_head.bbox_head.fc_cls'] = (classes + 1, 1024)
    shapes['roi_head.bbox_head.fc_reg'] = (4 * classes, 1024)
    shapes['roi_head.bbox_head.shared_fcs.0'] = (1024, 256 * 7 * 7)
    shapes['roi_head.bbox_head.shared_fcs.1'] = (1024, 1024)
    shapes.update({f'roi_head.mask_head.convs.{i}.conv': (256, 256, 3, 3) for i in range(4)})
    shapes['roi_head.mask_head.upsample'] = (256, 256, 2, 2)
    shapes['roi_head.mask_head.conv_logits'] = (classes, 256, 1, 1)
    for layer, shape in shapes.items():
        for entry, size in (('weight', shape), ('bias', shape[:1])):
            name = f'{layer}.{entry}'
            yield name, (name.removeprefix('roi_head.'), torch.empty(size, device='meta'))


def to_ours(name: str, tensor: Tensor) -> Tensor:
    """An authors' tensor as ours of this name: the background class moves from first to last, or goes."""
    if _LINEAR.search(name):
        return tensor.flatten(1)
    if '.fc_cls.' in name:
        return tensor.roll(-1, 0)
    if '.fc_reg.' in name:  # four numbers a class
        return tensor[4:]
    return tensor[1:] if '.conv_logits.' in name else tensor


def to_theirs(name: str, tensor: Tensor) -> Tensor:
    """Our tensor of this name as the authors'; the background has no box and no mask, so these are zero."""
    if _LINEAR.search(name):
        return tensor[..., None, None]
    if '.fc_cls.' in name:
        return tensor.roll(1, 0)
    rows = 4 if '.fc_reg.' in name else 1 if '.conv_logits.' in name else 0
    return torch.cat((torch.zeros_like(tensor[:rows]), tensor)) if rows else tensor
