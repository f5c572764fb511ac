"""The published sizes of HCGNet: how many modules each hybrid block has, and how wide they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Variant:
    """One size of HCGNet.

    Attributes:
        blocks: Number of SMG modules in each hybrid block.
        growth_rates: Channels that each module of a block adds (the paper's k).
        stem: 'imagenet' (three convolutions and a max-pool, stride 4) or 'cifar' (one convolution, stride 1).
    """

    blocks: tuple[int, ...]
    growth_rates: tuple[int, ...]
    stem: str = 'imagenet'

    def __post_init__(self) -> None:
        for name in ('blocks', 'growth_rates'):
            values = tuple(getattr(self, name))
            if not values or any(not isinstance(value, int) or value < 1 for value in values):
                raise ValueError(f'{name} must be positive whole numbers, one a stage, not {values}')
            object.__setattr__(self, name, values)
        if len(self.blocks) != len(self.growth_rates):
            raise ValueError(f'blocks {self.blocks} and growth_rates {self.growth_rates} differ in length')
        if any(rate % 4 for rate in self.growth_rates):  # the 3x3 convolution of a module has 4 groups
            raise ValueError(f'growth_rates must be multiples of 4, not {self.growth_rates}')
        if self.stem not in ('imagenet', 'cifar'):
            raise ValueError(f"stem must be 'imagenet' or 'cifar', not {self.stem!r}")

    @property
    def stem_channels(self) -> int:
        return 64 if self.stem == 'imagenet' else 2 * self.growth_rates[0]

    @property
    def stage_channels(self) -> tuple[int, ...]:
        """Channels of each stage's output: the halved input plus what its modules add."""
        channels, out = self.stem_channels, []
        for stage, (blocks, growth_rate) in enumerate(zip(self.blocks, self.growth_rates)):
            channels = (channels // 2 if stage else channels) + blocks * growth_rate
            out.append(channels)
        return tuple(out)

    @property
    def stage_strides(self) -> tuple[int, ...]:
        """Stride of each stage's output against the image."""
        first = 4 if self.stem == 'imagenet' else 1
        return tuple(first * 2**stage for stage in range(len(self.blocks)))


# Paper, tables 1 and 2.
VARIANTS = {
    'a1': Variant((8, 8, 8), (12, 24, 36), stem='cifar'),
    'a2': Variant((8, 8, 8), (24, 36, 64), stem='cifar'),
    'a3': Variant((12, 12, 12), (36, 48, 80), stem='cifar'),
    'b': Variant((3, 6, 12, 8), (32, 48, 64, 96)),
    'c': Variant((6, 12, 18, 14), (48, 56, 72, 112)),
}


def get_variant(arch: str | Mapping) -> Variant:
    """Return the variant that `arch` names (a key of `VARIANTS`) or describes (a dict of its fields)."""
    if isinstance(arch, Mapping):
        try:
            return Variant(**arch)
        except TypeError as error:
            raise ValueError(
                f'arch={dict(arch)} must have blocks and growth_rates, and may have stem: {error}'
            ) from None
    if not isinstance(arch, str) or arch not in VARIANTS:
        raise ValueError(
            f'arch must be one of {", ".join(VARIANTS)} or dict(blocks=..., growth_rates=...), not {arch!r}'
        )
    return VARIANTS[arch]
