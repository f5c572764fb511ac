"""What the tests of the network share: a trunk with given weights, images, and how far two answers differ."""

import torch

from mmhcg.network import Trunk
from mmhcg.weights.names import backbone_names, to_ours


def in_our_names(state, arch):
    """Entries of a trunk, or of a part of it, from the authors' detection names."""
    ours = {theirs: name for name, theirs in backbone_names(arch).items()}
    return {ours[key]: to_ours(ours[key], tensor) for key, tensor in state.items()}


def trunk_of(state, arch, dtype=torch.float64, **kwargs):
    trunk = Trunk(arch, **kwargs).to(dtype)
    trunk.load_state_dict(in_our_names(state, arch))
    return trunk


def image_of(batch, size, dtype=torch.float64, seed=0):
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def relative_error(actual, expected):
    return ((actual - expected).abs().max() / expected.abs().max().clamp(min=1e-300)).item()


def assert_gradients_equal(actual, expected):
    """To 1e-10 of each tensor's largest gradient, but for those that cancel and hold nothing but rounding."""
    assert actual.keys() == expected.keys()
    largest = max(gradient.abs().max() for gradient in expected.values())
    for name, gradient in expected.items():
        error = (actual[name] - gradient).abs().max()
        assert error <= 1e-10 * max(gradient.abs().max(), 1e-2 * largest), name


def equal(one, other):
    """Whether two state dicts are the same, bit by bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
