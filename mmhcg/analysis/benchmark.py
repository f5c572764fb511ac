"""Networks against each other in one process: time, memory, operators and bytes.

Candidates take turns, so that whatever else the machine does meets all of them alike; the best of many runs
is what a candidate can do, the median what it did.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import date
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmhcg.analysis.operators import OperatorCounter, saved_bytes
from mmhcg.analysis.tables import machine, software

COMPILED = {'compile': 'default', 'reduce-overhead': 'reduce-overhead', 'max-autotune': 'max-autotune'}
GRAPHED = ('graph', 'deploy-graph')
MODES = ('eager', 'deploy', *COMPILED, *GRAPHED)
DTYPES = {'fp32': torch.float32, 'fp16': torch.float16, 'bf16': torch.bfloat16}


@dataclass(frozen=True)
class Result:
    """What a candidate needed for one step.

    Attributes:
        candidate: Its name.
        model: 'backbone', or the detector that it is the backbone of.
        phase: 'infer' or 'train' (forward and backward pass).
        mode: 'eager', 'deploy', one of torch.compile's (`COMPILED`), or 'graph' and 'deploy-graph', which are
            'eager' and 'deploy' with the whole step in a CUDA graph.
        dtype: 'fp32', 'fp16' or 'bf16'.
        shape: 'N x 3 x H x W' of the images.
        best_ms, median_ms: Milliseconds of a step.
        images_per_s: By the best.
        peak_mb: Most memory of its own on the GPU in MB (10^6 bytes); empty on CPUs.
        saved_mb: MB kept for the backward pass, parameters left out; empty for inference.
        operators: Operators that run, those of the backward pass included; empty where they are compiled.
        moved_mb: MB that these take in and put out.
        to_plain, to_r50: `best_ms` divided by that of its plain formulation and of ResNet-50, if measured.
        machine, software, date: Of the measurement.
    """

    candidate: str
    model: str
    phase: str
    mode: str
    dtype: str
    shape: str
    best_ms: float
    median_ms: float
    images_per_s: float
    peak_mb: float | str
    saved_mb: float | str
    operators: int | str
    moved_mb: float | str
    to_plain: float | str
    to_r50: float | str
    machine: str
    software: str
    date: str


class ResNetTrunk(nn.Module):
    """A torchvision ResNet up to its four stages: images (N, 3, H, W) to one map a stage."""

    def __init__(self, resnet: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Sequential(resnet.conv1, resnet.bn1, resnet.relu, resnet.maxpool)
        self.stages = nn.ModuleList([resnet.layer1, resnet.layer2, resnet.layer3, resnet.layer4])

    def forward(self, image: Tensor) -> list[Tensor]:
        feat, out = self.stem(image), []
        for stage in self.stages:
            feat = stage(feat)
            out.append(feat)
        return out


def as_in_coco(network: nn.Module, phase: str) -> nn.Module:
    """A network with `stem` and `stages` in the COCO recipe: stem and stage 1 frozen, norms in eval mode."""
    network.train(phase == 'train')
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.eval()
    for part in (network.stem, network.stages[0]):
        part.eval().requires_grad_(False)
    return network


def compare(
    candidates: Mapping[str, nn.Module],
    image: Tensor,
    *,
    model: str = 'backbone',
    phase: str = 'infer',
    mode: str = 'eager',
    dtype: str = 'fp32',
    repeats: int = 10,
    progress: Callable[[str], None] = lambda text: None,
) -> list[Result]:
    """Measure every candidate on one image batch (N, 3, H, W).

    ResNet-50 is named 'r50', and the plain formulation 'plain', or 'plain b' where candidates are 'b ...' and
    of other architectures.

    Args:
        candidates: Networks by name, ready to run: on the image's device, compiled where `mode` says so.
        image: The batch.
        model: For the table.
        phase: 'infer', or 'train' for a forward and a backward pass.
        mode: For the table; what is compiled is not counted operator by operator, and in the modes of
            `GRAPHED` the steps that are timed are CUDA graphs.
        dtype: Precision, by autocast if the image has another.
        repeats: Timed runs of each candidate.
        progress: Is told what is going on.
    """
    steps = {name: _step(network, image, phase, dtype) for name, network in candidates.items()}
    counts: dict[str, dict[str, Any]] = {}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for name, step in steps.items():
        progress(f'{name}: first runs')
        step()
        counts[name] = _counts(candidates[name], step, image, phase, mode, dtype)
        if mode in GRAPHED:
            steps[name] = _graphed(step)
    for number in range(repeats):
        for name, step in steps.items():
            progress(f'{name}: run {number + 1} of {repeats}')
            times[name].append(_seconds(step, image.device))
    shared: dict[str, Any] = dict(
        model=model,
        phase=phase,
        mode=mode,
        dtype=dtype,
        shape=' x '.join(map(str, image.shape)),
        machine=machine(image.device),
        software=software(),
        date=date.today().isoformat(),
    )
    speeds = _speeds(times, len(image))
    return [Result(candidate=name, **shared, **counts[name], **speeds[name]) for name in steps]


def _speeds(times: Mapping[str, Sequence[float]], images: int) -> dict[str, dict[str, Any]]:
    """The columns of time, of each candidate's runs in seconds."""
    best = {name: min(seconds) for name, seconds in times.items()}

    def ratio(name: str, *others: str) -> float | str:
        return next((round(best[name] / best[other], 3) for other in others if other in best), '')

    return {
        name: dict(
            best_ms=round(best[name] * 1e3, 2),
            median_ms=round(median(seconds) * 1e3, 2),
            images_per_s=round(images / best[name], 2),
            to_plain=ratio(name, 'plain', f'plain {name.removeprefix("plain ").split()[0]}'),
            to_r50=ratio(name, 'r50'),
        )
        for name, seconds in times.items()
    }


def _forward(network: nn.Module, image: Tensor, dtype: str) -> Sequence[Tensor]:
    with torch.autocast(image.device.type, DTYPES[dtype]) if image.dtype != DTYPES[dtype] else nullcontext():
        return network(image)


def _step(network: nn.Module, image: Tensor, phase: str, dtype: str) -> Callable[[], Any]:
    def infer() -> None:
        with torch.no_grad():
            _forward(network, image, dtype)

    def train() -> None:
        maps = _forward(network, image, dtype)
        sum(feat.float().mean() for feat in maps if feat.requires_grad).backward()

    return train if phase == 'train' else infer


def _graphed(step: Callable[[], Any]) -> Callable[[], Any]:
    """The step as a CUDA graph: what it launched once is launched again, without Python."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def _counts(
    network: nn.Module, step: Callable[[], Any], image: Tensor, phase: str, mode: str, dtype: str
) -> dict[str, Any]:
    """The columns that do not vary from run to run."""
    counts: dict[str, Any] = dict.fromkeys(('peak_mb', 'saved_mb', 'operators', 'moved_mb'), '')
    if image.device.type == 'cuda':
        counts['peak_mb'] = round(_peak(network, step, image) / 1e6, 1)
    if mode not in COMPILED:
        with OperatorCounter() as counter:
            step()
        counts.update(operators=counter.calls, moved_mb=round(counter.moved / 1e6, 1))
    if phase == 'train' and mode not in COMPILED:
        saved, _ = saved_bytes(lambda: _forward(network, image, dtype), network.parameters())
        counts['saved_mb'] = round(saved / 1e6, 1)
    return counts


def _peak(network: nn.Module, step: Callable[[], Any], image: Tensor) -> int:
    """Most bytes on the GPU during a step that are the network's: image, weights, and what the step adds.

    Other candidates' are there before the step as during it.
    """
    network.zero_grad(set_to_none=True)  # so that the step adds its gradients
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step()
    own = sum(tensor.nbytes for tensor in (image, *network.parameters(), *network.buffers()))
    return own + torch.cuda.max_memory_allocated() - before


def _seconds(step: Callable[[], Any], device: torch.device) -> float:
    if device.type == 'cuda':
        torch.cuda.synchronize()
    start = time.perf_counter()
    step()
    if device.type == 'cuda':
        torch.cuda.synchronize()
    return time.perf_counter() - start
