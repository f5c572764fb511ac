"""HCGNet as MMDetection's detectors expect a backbone to be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from math import gcd
from typing import Any

from mmengine.dist import get_world_size
from mmengine.model import BaseModule, PretrainedInit
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.runner.checkpoint import CheckpointLoader
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmhcg.network import Trunk
from mmhcg.network.layers import Norm
from mmhcg.registry import MODELS
from mmhcg.weights.fit import check_fit

ONE_IMAGE = (
    "HCGNet's gates normalise one number per image and channel, so a BatchNorm in training mode needs at "
    'least two images per GPU. Set norm_eval=True on the backbone, raise the batch size, or use '
    "norm_cfg=dict(type='SyncBN') on several GPUs or dict(type='GN', num_groups=32)."
)
PRETRAINED = ('Pretrained', PretrainedInit)


@ROOT_MODELS.register_module()
@MODELS.register_module()
class HCGNet(Trunk, BaseModule):
    """`mmhcg.network.Trunk`, with its attributes and the conventions of MMDetection's ResNet.

    Args:
        arch: 'b' (stage channels 160, 368, 952, 1244), 'c' (352, 848, 1720, 2428), 'a1', 'a2', 'a3' (CIFAR,
            three stages), or a dict with `blocks` and `growth_rates`.
        in_channels: Channels of the image.
        out_indices: Stages to return, ascending from 0; later ones are not built. None: all.
        frozen_stages: -1 freezes nothing, 0 the stem, k the stem and the first k stages with the norm that
            emits their output: no gradient, norms in eval mode.
        norm_cfg: Every norm, the gates' included: of type BN, SyncBN or GN. GN takes the greatest common
            divisor of `num_groups` and the layer's channels, and one group inside the gates, where each
            channel has a single number.
        norm_eval: Keep every BatchNorm on its running statistics while training.
        with_cp: Recompute each SMG module in the backward pass: less memory, more time.
        drop_block: DropBlock after each transition while training, e.g. dict(block_size=2, probability=0.1).
        init_cfg: As in MMEngine, but pretrained weights must cover the whole network. None keeps the
            network's own initialisation.
    """

    def __init__(
        self,
        arch: str | Mapping = 'b',
        in_channels: int = 3,
        out_indices: Sequence[int] | None = None,
        frozen_stages: int = -1,
        norm_cfg: Mapping = dict(type='BN', requires_grad=True),
        norm_eval: bool = False,
        with_cp: bool = False,
        drop_block: Mapping | None = None,
        init_cfg: dict | list | None = None,
    ) -> None:
        norm, gate_norm = _norms(norm_cfg)
        super().__init__(
            arch,
            in_channels,
            out_indices,
            norm=norm,
            gate_norm=gate_norm,
            with_cp=with_cp,
            drop_block=drop_block,
        )
        most = len(self.stages)
        if not isinstance(frozen_stages, int) or not -1 <= frozen_stages <= most:
            raise ValueError(f'frozen_stages must be a whole number in -1..{most}, not {frozen_stages!r}')
        _inits(init_cfg)
        self.init_cfg = init_cfg
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        self.train()

    def train(self, mode: bool = True) -> HCGNet:
        """Set training mode, but for what is frozen and, with `norm_eval`, every BatchNorm."""
        super().train(mode)
        for part in [self.stem, *self.stages][: self.frozen_stages + 1]:
            part.eval().requires_grad_(False)
        if self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def init_weights(self) -> None:
        """Initialise as `init_cfg` says, with `check_pretrained` first."""
        self.check_pretrained()
        super().init_weights()

    def check_pretrained(self) -> None:
        """Raises CheckpointError where a pretrained file of `init_cfg` does not cover the whole network."""
        for init in _inits(self.init_cfg):
            if init['type'] in PRETRAINED:
                content = CheckpointLoader.load_checkpoint(init['checkpoint'], map_location='cpu')
                check_fit(init['checkpoint'], content, self, init.get('prefix'))

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Map (N, in_channels, H, W) to one map (N, C_i, ceil(H / s_i), ceil(W / s_i)) per out_index.

        Raises:
            ValueError: One image per GPU in training, where the gates' BatchNorm has one number a channel.
        """
        if self.training and len(image) == 1 and self.gates_need_a_batch(get_world_size()):
            raise ValueError(ONE_IMAGE)
        return super().forward(image)

    def gates_need_a_batch(self, world_size: int) -> bool:
        """Whether a norm in the gates is to learn from the images of one process of these alone."""
        alone = (nn.BatchNorm1d, nn.SyncBatchNorm) if world_size == 1 else nn.BatchNorm1d
        return any(isinstance(module, alone) and module.training for module in self.modules())


def _inits(init_cfg: Any) -> Sequence[Mapping]:
    """The dicts of an `init_cfg`, each with its type, and with its file if it is pretrained."""
    inits = [init_cfg] if isinstance(init_cfg, Mapping) else () if init_cfg is None else init_cfg
    if not isinstance(inits, (list, tuple)) or not all(isinstance(init, Mapping) for init in inits):
        raise TypeError(f'init_cfg must be None, a dict or a list of dicts, not {init_cfg!r}')
    for init in inits:
        if 'type' not in init:
            raise ValueError(f"init_cfg={init} has no type; a file wants type='Pretrained'")
        if init['type'] in PRETRAINED and not isinstance(init.get('checkpoint'), str):
            raise ValueError(f'init_cfg={init} must name its file: checkpoint=FILE')
    return inits


def _norms(norm_cfg: Any) -> tuple[Norm, Norm]:
    """What makes the norms on maps, and those on contexts (N, C), which have no positions."""
    import mmcv.cnn  # noqa: F401  names the norms; late, so that `import mmhcg` needs no mmcv

    options = dict(norm_cfg) if isinstance(norm_cfg, Mapping) else {}
    kind, groups = options.pop('type', None), options.get('num_groups')
    if isinstance(kind, str):
        with ROOT_MODELS.switch_scope_and_registry(None) as registry:
            kind = registry.get(kind)
    if isinstance(kind, type) and issubclass(kind, (nn.BatchNorm2d, nn.SyncBatchNorm)) and groups is None:
        gate_kind, gate_options = nn.BatchNorm1d if issubclass(kind, nn.BatchNorm2d) else kind, options
    elif isinstance(kind, type) and issubclass(kind, nn.GroupNorm) and isinstance(groups, int) and groups > 0:
        gate_kind, gate_options = kind, dict(options, num_groups=1)
    else:
        raise ValueError(
            f'norm_cfg must be a dict of type BN, SyncBN or GN, not {norm_cfg!r}; GN needs num_groups > 0, '
            'and the others take none'
        )
    return partial(_build_norm, kind, options), partial(_build_norm, gate_kind, gate_options)


def _build_norm(kind: type[nn.Module], options: Mapping, channels: int) -> nn.Module:
    options = dict(options)
    learns = options.pop('requires_grad', True)
    if 'num_groups' in options:
        norm = kind(gcd(options.pop('num_groups'), channels), channels, **options)
    else:
        norm = kind(channels, **options)
    return norm.requires_grad_(learns)
