"""Parameters, multiply-adds and activations of a detector, counted while it runs once on an empty image.

Nothing is traced: PyTorch reports every operator that runs, so a model that runs can be counted. HCGNet is
counted as the paper writes it, depthwise convolutions included, which `mmhcg.network.attention` avoids.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from mmcv.ops import DeformConv2d, ModulatedDeformConv2d
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.modules.pooling import _AdaptiveAvgPoolNd, _AdaptiveMaxPoolNd, _AvgPoolNd, _MaxPoolNd
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import FlopCounterMode

from mmhcg.analysis.tables import align
from mmhcg.network import gates
from mmhcg.network.fast import affine, kernels
from mmhcg.network.gates import AttentionPool, ExcitedAttentionPool

MASKS = 100  # an image, as in MMDetection's Mask R-CNN
PROPOSALS = 1000  # where the test configuration does not say
OTHER = 'other'  # what runs, or is a parameter, outside of all parts
_DEFORMABLE = (DeformConv2d, ModulatedDeformConv2d)  # compiled mmcv hides these from PyTorch
_ACTIVATIONS = (nn.ReLU, nn.PReLU, nn.ELU, nn.LeakyReLU, nn.ReLU6)
_POOLS = (_AvgPoolNd, _MaxPoolNd, _AdaptiveAvgPoolNd, _AdaptiveMaxPoolNd, AttentionPool, ExcitedAttentionPool)


@dataclass(frozen=True)
class Part:
    """A part of a detector and what it costs for one image.

    Attributes:
        name: Dotted, as in the model, e.g. 'backbone.stages.0'; 'backbone' is what of it is in no such part.
        parameters: All of them.
        trainable: Those that get a gradient.
        exact: Multiply-adds of convolutions, linear layers and matrix products; not of recurrent layers.
        paper: What MMDetection 1's counter says, which gave the paper's numbers: transposed convolutions at
            the size of their output, biases of convolutions, two operations for each element of a BatchNorm,
            one for each that a ReLU puts out or a pooling takes in; modules only, not functions.
        activations: Elements that convolutions and linear layers put out.
    """

    name: str
    parameters: int
    trainable: int
    exact: int
    paper: int
    activations: int


def count_complexity(model: nn.Module, shape: tuple[int, int] = (800, 1280)) -> list[Part]:
    """Count each part of an MMDetection detector for one image (3, *shape).

    The RoI heads get as many proposals as the test configuration lets through, 1000 as a rule, and mask heads
    the first 100 of them. Parts that have no parameters and do not compute are left out.
    """
    parts = dict(_parts(model))
    meter = _Meter(parts)
    modes = {module: module.training for module in model.modules()}
    model.eval()
    with ExitStack() as stack:
        for module, mode in modes.items():
            stack.callback(setattr, module, 'training', mode)
        # PyTorch's counter follows gradients, and fails on parameters that are split where there are none.
        trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        stack.callback(lambda: [parameter.requires_grad_() for parameter in trainable])
        model.requires_grad_(False)
        stack.enter_context(patch.object(AttentionPool, 'forward', _pool))
        stack.enter_context(patch.object(ExcitedAttentionPool, 'forward', _excited_pool))
        stack.enter_context(patch.object(gates, 'contexts', _contexts))
        stack.enter_context(kernels.enabled(False))
        stack.enter_context(patch.object(affine, 'is_affine', lambda norm: False))  # norms by themselves
        if isinstance(getattr(model, 'rpn_head', None), BaseDenseHead):
            predict = partial(_predict, partial(meter.run, model.rpn_head, model.rpn_head.predict))
            stack.enter_context(patch.object(model.rpn_head, 'predict', predict))
        for name, part in parts.items():
            if name.startswith('roi_head.mask_head') and not isinstance(part, nn.ModuleList):
                stack.enter_context(patch.object(part, 'forward', partial(_first_rois, part.forward)))
        for part in parts.values():  # not by hooks, which detectors that call `head.forward` pass by
            stack.enter_context(patch.object(part, 'forward', partial(meter.run, part, part.forward)))
        stack.enter_context(meter)
        stack.enter_context(torch.no_grad())
        stack.enter_context(_EveryFunction())
        stack.enter_context(_unfused_attention())
        sample = _sample(model, shape)
        model(sample.proposals.bboxes.new_zeros(1, 3, *shape), [sample], mode='tensor')

    owner = {id(p): name for name, part in parts.items() for p in part.parameters()}  # the innermost part
    parameters = defaultdict(list)
    for parameter in model.parameters():
        parameters[owner.get(id(parameter), OTHER)].append(parameter)
    counted = [
        Part(
            name,
            sum(p.numel() for p in parameters[name]),
            sum(p.numel() for p in parameters[name] if p.requires_grad),
            **{kind: meter.booked[name][kind] for kind in ('exact', 'paper', 'activations')},
        )
        for name in [*parts, OTHER]
    ]
    return [part for part in counted if part.parameters or part.exact or part.paper or part.activations]


def _parts(module: nn.Module, path: str = '') -> Iterator[tuple[str, nn.Module]]:
    """The model's children; of the backbone, the RoI heads and lists of modules their children as well."""
    for name, child in module.named_children():
        name = f'{path}{name}'
        yield name, child
        if name in ('backbone', 'roi_head') or isinstance(child, (nn.ModuleList, nn.ModuleDict)):
            yield from _parts(child, f'{name}.')


def _sample(model: nn.Module, shape: tuple[int, int]) -> DetDataSample:
    """What a detector is told of the image, with as many proposals as its RoI heads get when they test."""
    rpn = (getattr(model, 'test_cfg', None) or {}).get('rpn') or {}
    boxes = torch.tensor([0.0, 0.0, shape[1] / 2, shape[0] / 2]).repeat(rpn.get('max_per_img', PROPOSALS), 1)
    size = dict.fromkeys(('ori_shape', 'img_shape', 'pad_shape', 'batch_input_shape'), shape)
    sample = DetDataSample(metainfo=dict(size, scale_factor=(1.0, 1.0), img_id=0, img_path=''))
    sample.proposals = InstanceData(bboxes=boxes)
    sample.gt_instances = InstanceData(bboxes=boxes[:0], labels=boxes.new_zeros(0, dtype=torch.long))
    return sample.to(next(model.parameters()).device)


def _predict(
    predict: Callable, feats: Sequence[Tensor], samples: Any, *args: Any, **kwargs: Any
) -> list[InstanceData]:
    """An RPN's `predict` that runs, but answers with the proposals of the samples."""
    predict(feats, samples, *args, **kwargs)
    return [sample.proposals for sample in samples]


def _first_rois(forward: Callable, *args: Any) -> Any:
    """A mask head's `forward` on no more RoIs than there are masks in a test; zeros stand for the others."""
    count = len(args[0])
    args = tree_map(lambda arg: arg[:MASKS] if isinstance(arg, Tensor) and len(arg) == count else arg, args)
    return tree_map(lambda out: out.new_zeros(count, *out.shape[1:]), forward(*args))


def _contexts(update: nn.Module, forget: nn.Module, feat: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The gates' pooling as the paper has it, with the excited maps that ours never makes."""
    return update.pool3(feat), update.pool5(feat), forget.pool(feat)


def _pool(pool: nn.Module, feat: Tensor) -> Tensor:
    return (feat.flatten(2) * pool.project(feat).flatten(2).softmax(-1)).sum(2)


def _excited_pool(pool: nn.Module, feat: Tensor) -> Tensor:
    return _pool(pool, pool.depthwise(F.relu(pool.norm(feat))))


class _EveryFunction(TorchFunctionMode):
    """Changes nothing; while a mode is entered PyTorch's attention layers do not take their fast paths."""

    def __torch_function__(self, func: Callable, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


def _unfused_attention() -> AbstractContextManager:
    """Attention as its matrix products, for PyTorch's counter does not know the CPU's operator for it."""
    try:
        from torch.nn.attention import SDPBackend, sdpa_kernel
    except ImportError:  # PyTorch before 2.3
        return torch.backends.cuda.sdp_kernel(enable_flash=False, enable_mem_efficient=False)
    return sdpa_kernel(SDPBackend.MATH)


class _Meter:
    """Counts what runs while it is entered, and books it on the part that is running."""

    def __init__(self, parts: Mapping[str, nn.Module]) -> None:
        self.booked: dict[str, Counter[str]] = defaultdict(Counter)  # name of the part -> count by kind
        self._names = {part: name for name, part in parts.items()}
        self._flops = FlopCounterMode(display=False)
        self._seen: Counter[str] = Counter()
        self._last: Counter[str] = Counter()
        self._running = [OTHER]

    def __enter__(self) -> None:
        self._hook = register_module_forward_hook(self._see)
        self._flops.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._flops.__exit__(*error)
        self._hook.remove()
        self._book()

    def run(self, part: nn.Module, forward: Callable, *args: Any, **kwargs: Any) -> Any:
        """Call `forward`, and book on this part what it costs."""
        self._book()
        self._running.append(self._names[part])
        out = forward(*args, **kwargs)
        self._book()
        self._running.pop()
        return out

    def _book(self) -> None:
        now = self._seen + Counter(exact=self._flops.get_total_flops() // 2)
        self.booked[self._running[-1]] += now - self._last
        self._last = now

    def _see(self, module: nn.Module, args: tuple, out: Any) -> None:
        """A module has run: count what PyTorch does not, and what MMDetection 1 did."""
        if module in self._names:
            self.run(module, self._count, module, args, out)
        else:
            self._count(module, args, out)

    def _count(self, module: nn.Module, args: tuple, out: Any) -> None:
        if isinstance(module, (_ConvNd, *_DEFORMABLE)):
            products = out.numel() * module.weight[0].numel()
            if isinstance(module, _ConvTransposeNd):  # weight (Cin, Cout / groups, ...)
                products = out.numel() * module.weight[:, 0].numel() // module.groups
            biases = 0 if getattr(module, 'bias', None) is None else out.numel()
            self._seen.update(activations=out.numel(), paper=products + biases)
            if isinstance(module, _DEFORMABLE):
                self._seen.update(exact=products)
        elif isinstance(module, nn.Linear):
            self._seen.update(activations=out.numel(), paper=out.numel() * module.in_features)
        elif isinstance(module, _BatchNorm):
            self._seen.update(paper=out.numel() * (2 if module.affine else 1))
        elif isinstance(module, _POOLS) and args:
            self._seen.update(paper=args[0].numel())
        elif isinstance(module, (*_ACTIVATIONS, nn.Upsample)):
            self._seen.update(paper=out.numel())


def format_table(parts: Sequence[Part], count: str = 'exact') -> str:
    """The parts with sums as a table, multiply-adds counted the `exact` way or that of the `paper`."""
    rows = []
    for group in dict.fromkeys(part.name.split('.')[0] for part in parts):
        members = [part for part in parts if part.name.split('.')[0] == group]
        rows.append(_row(group, members, count))
        members = [part for part in members if part.parameters or getattr(part, count) or part.activations]
        if len(members) > 1:
            rows += [_row(f'  {part.name[len(group) + 1 :] or "itself"}', [part], count) for part in members]
    head = ('part', 'parameters', 'trainable', 'multiply-adds', 'activations')
    return align([head, *rows, _row('total', parts, count)])


def _row(name: str, parts: Sequence[Part], count: str) -> tuple[str, ...]:
    def total(field: str) -> int:
        return sum(getattr(part, field) for part in parts)

    return (
        name,
        f'{total("parameters") / 1e6:.2f} M',
        f'{total("trainable") / 1e6:.2f} M',
        f'{total(count) / 1e9:.2f} G',
        f'{total("activations") / 1e6:.1f} M',
    )
