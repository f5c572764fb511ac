"""What the tests of mmcv's operators share: compiled mmcv's recorded answers, devices, RoIs and tolerance."""

from pathlib import Path

import numpy as np
import pytest
import torch

RECORDS = Path(__file__).parent / 'data' / 'mmcv_ops'
# float32 sums of up to 49 x 9 terms of size 1, in another order
SUMS = {'rtol': 1e-5, 'atol': 2e-5}

devices = pytest.mark.parametrize('device', ['cpu', *(['cuda'] if torch.cuda.is_available() else [])])


def record(name: str, device: str = 'cpu') -> dict[str, torch.Tensor]:
    with np.load(RECORDS / f'{name}.npz') as arrays:
        return {key: torch.from_numpy(arrays[key]).to(device) for key in arrays}


def random_rois(count: int, height: int, width: int, scale: float, seed: int = 0) -> torch.Tensor:
    """RoIs (count, 5) on two images, some of them partly outside, the last one off the map."""
    generator = np.random.default_rng(seed)
    corners = generator.uniform(-0.2, 0.9, (count, 2)) * (width, height) / scale
    sides = generator.uniform(0.05, 0.6, (count, 2)) * (width, height) / scale
    sides[-1], corners[-1] = (9, 9), np.array((width, height)) * 2 / scale
    return torch.from_numpy(np.column_stack((np.arange(count) % 2, corners, corners + sides)))
