"""HCGNet as the paper and its authors' code have it, in the plainest code that runs: a second opinion.

The paper is Yang et al., AAAI 2020, arXiv 1908.09699; formulas are those of its section on the SMG module.

Nothing here is shared with `mmhcg`. Parameters live in a flat dict under the names of the authors' detection
checkpoints, maps are computed and not avoided, and every formula is written where it is used.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

ARCHS = {  # blocks, growth rates
    'a1': ((8, 8, 8), (12, 24, 36)),
    'a2': ((8, 8, 8), (24, 36, 64)),
    'a3': ((12, 12, 12), (36, 48, 80)),
    'b': ((3, 6, 12, 8), (32, 48, 64, 96)),
    'c': ((6, 12, 18, 14), (48, 56, 72, 112)),
}


class Oracle:
    """Functional HCGNet over a dict of tensors.

    Args:
        state: Parameters and buffers by the authors' detection names.
        arch: Name, or (blocks, growth_rates).
        training: Batch statistics in every norm (running statistics are not updated).
    """

    def __init__(self, state, arch, training=False):
        self.state = state
        self.blocks, self.growth_rates = ARCHS.get(arch, arch) if isinstance(arch, str) else arch
        self.cifar = arch in ('a1', 'a2', 'a3')
        self.training = training

    def conv(self, name, x, **kwargs):
        return F.conv2d(x, self.state[f'{name}.weight'], self.state.get(f'{name}.bias'), **kwargs)

    def norm(self, name, x):
        weight, bias, mean, var = (
            self.state[f'{name}.{entry}'] for entry in ('weight', 'bias', 'running_mean', 'running_var')
        )
        if self.training:
            mean = var = None
        return F.batch_norm(x, mean, var, weight, bias, self.training)

    def pooled(self, name, x):
        n, c, h, w = x.shape
        weights = torch.softmax(self.conv(name, x).reshape(n, 1, h * w), dim=2)
        return (x.reshape(n, c, h * w) * weights).sum(2).reshape(n, c, 1, 1)

    def smg(self, name, x, mid, out, groups, stride):
        # Squeeze cell.
        x = self.conv(f'{name}.conv1_1x1.conv', F.relu(self.norm(f'{name}.conv1_1x1.bn1', x)))
        assert x.shape[1] == mid
        x = F.relu(self.norm(f'{name}.conv2_3x3.bn1', x))
        x = self.conv(f'{name}.conv2_3x3.conv', x, stride=stride, padding=1, groups=groups)
        assert x.shape[1] == out
        # Excitation cell.
        x3 = F.relu(self.norm(f'{name}.conv_3x3.bn1', x))
        x3 = self.conv(f'{name}.conv_3x3.conv', x3, padding=1, groups=out)
        x5 = F.relu(self.norm(f'{name}.conv_5x5.bn1', x))
        x5 = self.conv(f'{name}.conv_5x5.conv', x5, padding=2, dilation=2, groups=out)
        # Update gate.
        z3 = self.pooled(f'{name}.global_context3x3', x3)
        z5 = self.pooled(f'{name}.global_context5x5', x5)
        h = self.conv(f'{name}.fcall', torch.cat([z3, z5], 1)).flatten(1)
        h = torch.tanh(self.norm(f'{name}.bn_attention', h))[:, :, None, None]
        u = torch.softmax(torch.stack([self.conv(f'{name}.fc3x3', h), self.conv(f'{name}.fc5x5', h)]), dim=0)
        v = u[0] * z3 + u[1] * z5
        # Forget gate.
        zf = self.pooled(f'{name}.global_forget_context', x)
        h = torch.tanh(self.norm(f'{name}.bn_forget', self.conv(f'{name}.fc1', zf).flatten(1)))
        f = torch.sigmoid(self.conv(f'{name}.fc2', h[:, :, None, None]))
        # Fusion.
        return f * x + v

    def __call__(self, image):
        """Stage features (C2, C3, C4, C5) of an image (N, 3, H, W); three of them for the CIFAR variants."""
        x, features = image, []
        if self.cifar:
            x = self.conv('stem0.conv', x, padding=1)
        else:
            for i in range(3):
                x = self.conv(f'stem{i}.conv', x, stride=2 if i == 0 else 1, padding=1)
                x = F.relu(self.norm(f'stem{i}.bn1', x))
            x = F.max_pool2d(x, 3, 2, 1)
        for b, (modules, k) in enumerate(zip(self.blocks, self.growth_rates), 1):
            for m in range(modules):
                x = torch.cat([x, self.smg(f'hybridblock{b}.{m}', x, 4 * k, k, 4, 1)], 1)
            if b == len(self.blocks):
                features.append(F.relu(self.norm('bn1', x)))
            else:
                features.append(F.relu(self.norm(f'transition{b + 1}.conv1_1x1.bn1', x)))
                out = x.shape[1] // 2
                x = self.smg(f'transition{b + 1}', x, x.shape[1] - (x.shape[1] - out) // 2, out, 1, 2)
        return features


def random_state(arch, seed=0, dtype=torch.float64, in_channels=3):
    """Random parameters and running statistics, by the authors' detection names, for a variant."""
    blocks, growth_rates = ARCHS.get(arch, arch) if isinstance(arch, str) else arch
    g = torch.Generator().manual_seed(seed)
    state = {}

    def tensor(*shape, scale=1.0, shift=0.0):
        return (torch.randn(*shape, generator=g, dtype=torch.float64) * scale + shift).to(dtype)

    def conv(name, cin, cout, k, groups=1, bias=False):
        state[f'{name}.weight'] = tensor(
            cout, cin // groups, k, k, scale=(2 / (cin // groups * k * k)) ** 0.5
        )
        if bias:
            state[f'{name}.bias'] = tensor(cout, scale=0.1)

    def norm(name, c):
        state[f'{name}.weight'] = tensor(c, scale=0.1, shift=1.0)
        state[f'{name}.bias'] = tensor(c, scale=0.1)
        state[f'{name}.running_mean'] = tensor(c, scale=0.1)
        state[f'{name}.running_var'] = tensor(c, scale=0.1, shift=1.0).abs() + 0.1
        state[f'{name}.num_batches_tracked'] = torch.tensor(7)

    def smg(name, cin, mid, out, groups, r):
        norm(f'{name}.conv1_1x1.bn1', cin)
        conv(f'{name}.conv1_1x1.conv', cin, mid, 1)
        norm(f'{name}.conv2_3x3.bn1', mid)
        conv(f'{name}.conv2_3x3.conv', mid, out, 3, groups)
        for cell in ('conv_3x3', 'conv_5x5'):
            norm(f'{name}.{cell}.bn1', out)
            conv(f'{name}.{cell}.conv', out, out, 3, out)
        for pool in ('global_context3x3', 'global_context5x5', 'global_forget_context'):
            conv(f'{name}.{pool}', out, 1, 1, bias=True)
        conv(f'{name}.fcall', 2 * out, 2 * out // r, 1, bias=True)
        norm(f'{name}.bn_attention', 2 * out // r)
        conv(f'{name}.fc3x3', 2 * out // r, out, 1, bias=True)
        conv(f'{name}.fc5x5', 2 * out // r, out, 1, bias=True)
        conv(f'{name}.fc1', out, out // r, 1, bias=True)
        norm(f'{name}.bn_forget', out // r)
        conv(f'{name}.fc2', out // r, out, 1, bias=True)

    if arch in ('a1', 'a2', 'a3'):
        c = 2 * growth_rates[0]
        conv('stem0.conv', in_channels, c, 3)
    else:
        for i, (cin, cout) in enumerate(((in_channels, 32), (32, 32), (32, 64))):
            conv(f'stem{i}.conv', cin, cout, 3)
            norm(f'stem{i}.bn1', cout)
        c = 64
    for b, (modules, k) in enumerate(zip(blocks, growth_rates), 1):
        for m in range(modules):
            smg(f'hybridblock{b}.{m}', c, 4 * k, k, 4, 2)
            c += k
        if b < len(blocks):
            smg(f'transition{b + 1}', c, c - (c - c // 2) // 2, c // 2, 1, 4)
            c //= 2
    norm('bn1', c)
    return state
