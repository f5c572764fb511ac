"""HCGNet as MMDetection's detectors expect a backbone to be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from math import gcd

from mmengine.dist import get_world_size
from mmengine.model import BaseModule, PretrainedInit
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.runner.checkpoint import CheckpointLoader
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmhcg.network import Trunk
from mmhcg.registry import MODELS
from mmhcg.weights.fit import check_fit


@ROOT_MODELS.register_module()
@MODELS.register_module()
class HCGNet(Trunk, BaseModule):
    """The trunk of HCGNet (Yang et al., AAAI 2020) with the conventions of MMDetection's ResNet.

    Args:
        arch: 'b' (stage channels 160, 368, 952, 1244), 'c' (352, 848, 1720, 2428), 'a1', 'a2', 'a3' (CIFAR,
            three stages), or a dict with `blocks` and `growth_rates`.
        in_channels: Channels of the image.
        out_indices: Stages to return, ascending from 0. Stages after the last of them are not built.
        frozen_stages: -1 freezes nothing, 0 the stem, k the stem and the first k stages with the norm that
            emits their output: no gradient, norms in eval mode.
        norm_cfg: Every norm, the gates' included. GN takes the greatest common divisor of `num_groups` and
            the layer's channels, and one group inside the gates, where each channel has a single number.
        norm_eval: Keep every BatchNorm on its running statistics while training.
        with_cp: Recompute each SMG module in the backward pass: less memory, more time.
        drop_block: DropBlock after each transition while training, e.g. dict(block_size=2, probability=0.1).
        init_cfg: As in MMEngine, but pretrained weights must cover the whole network. None keeps the
            network's own initialisation.

    Attributes:
        out_channels: Channels of each returned map.
        out_strides: Stride of each returned map.
    """

    def __init__(
        self,
        arch: str | Mapping = 'b',
        in_channels: int = 3,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        frozen_stages: int = -1,
        norm_cfg: Mapping = dict(type='BN', requires_grad=True),
        norm_eval: bool = False,
        with_cp: bool = False,
        drop_block: Mapping | None = None,
        init_cfg: dict | list | None = None,
    ) -> None:
        super().__init__(
            arch,
            in_channels,
            out_indices,
            norm=partial(_build_norm, norm_cfg),
            gate_norm=partial(_build_gate_norm, norm_cfg),
            with_cp=with_cp,
            drop_block=drop_block,
        )
        if not -1 <= frozen_stages <= len(self.stages):
            raise ValueError(f'frozen_stages must be in -1..{len(self.stages)}, not {frozen_stages}')
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
        for init in [self.init_cfg] if isinstance(self.init_cfg, Mapping) else self.init_cfg or []:
            if 'type' not in init:
                raise ValueError(f"init_cfg={init} has no type; a file wants type='Pretrained'")
            if init['type'] in ('Pretrained', PretrainedInit):
                content = CheckpointLoader.load_checkpoint(init['checkpoint'], map_location='cpu')
                check_fit(init['checkpoint'], content, self, init.get('prefix'))

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Map (N, in_channels, H, W) to one map (N, C_i, ceil(H / s_i), ceil(W / s_i)) an out_index.

        Raises:
            ValueError: One image a GPU in training, where the gates' BatchNorm has one number a channel.
        """
        if self.training and len(image) == 1 and self._gates_need_a_batch():
            raise ValueError(
                "HCGNet's gates normalise one number per image and channel, so a BatchNorm in training mode "
                'needs at least two images a GPU. Set norm_eval=True on the backbone, raise the batch size, '
                "or use norm_cfg=dict(type='SyncBN') on several GPUs or dict(type='GN', num_groups=32)."
            )
        return super().forward(image)

    def _gates_need_a_batch(self) -> bool:
        alone = (nn.BatchNorm1d, nn.SyncBatchNorm) if get_world_size() == 1 else nn.BatchNorm1d
        return any(isinstance(module, alone) and module.training for module in self.modules())


def _build_norm(norm_cfg: Mapping, channels: int) -> nn.Module:
    from mmcv.cnn import build_norm_layer  # late, so that `import mmhcg` needs no mmcv

    cfg = dict(norm_cfg)
    if cfg['type'] in ('GN', nn.GroupNorm):
        cfg['num_groups'] = gcd(cfg['num_groups'], channels)
    return build_norm_layer(cfg, channels)[1]


def _build_gate_norm(norm_cfg: Mapping, channels: int) -> nn.Module:
    """The norm for contexts (N, C), which have no positions."""
    cfg = dict(norm_cfg)
    if cfg['type'] in ('BN', 'BN2d', nn.BatchNorm2d):
        cfg['type'] = 'BN1d'
    elif cfg['type'] in ('GN', nn.GroupNorm):
        cfg['num_groups'] = 1
    return _build_norm(cfg, channels)
