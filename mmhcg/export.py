"""Export HCGNet to ONNX or `torch.export`, and verify the result."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import inf
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from mmhcg.weights.files import check_new, publish

SUFFIXES = ('.onnx', '.pt2')
OPSET = 18
TOLERANCE = 1e-4  # largest error, of the largest number of a map
DYNAMIC_SIZES = (
    (2, 256, 320),
    (1, 333, 500),
    (1, 800, 1216),
)  # (N, H, W) that a dynamic export is checked at


class ExportError(RuntimeError):
    """What was exported does not give the network's numbers, or cannot be made."""


def export(backbone: nn.Module, out: str | Path, size: tuple[int, int, int] | None = None) -> list[float]:
    """Write a backbone to a new `.onnx` or `.pt2` file; returns its largest relative error at each size.

    Its input `image` is (N, C, H, W), its outputs `c2`, `c3`, ... are the maps of `out_indices`.

    Args:
        backbone: An HCGNet or its trunk, on the CPU in float32; of C channels, as its stem takes them.
        out: The file.
        size: (N, H, W), which is then fixed; None: any, of 33 pixels at least.

    Raises:
        ValueError: `out` ends in neither .onnx nor .pt2.
        FileExistsError: It is there already.
        NotADirectoryError: What should be its folder is none.
        ExportError: What came out differs from the network by more than `TOLERANCE`; nothing is written.
    """
    out = Path(out)
    check_new(out, SUFFIXES)
    if not hasattr(torch.onnx, 'ONNXProgram'):
        raise ExportError(f'export needs PyTorch 2.6 or newer, not {torch.__version__}')
    modes = [(module, module.training) for module in backbone.modules()]
    try:
        return _export(backbone.eval(), out, size)
    finally:
        for module, mode in modes:
            module.training = mode


def _export(backbone: nn.Module, out: Path, size: tuple[int, int, int] | None) -> list[float]:
    sizes = DYNAMIC_SIZES if size is None else (size,)
    program = _program(backbone, sizes[0], dynamic=size is None)
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=out.parent, prefix=f'.{out.name}.') as folder:
        new = Path(folder, out.name)
        run = (_write_onnx if out.suffix == '.onnx' else _write_pt2)(backbone, program, new)
        errors = [_error(backbone, run, size) for size in sizes]
        if not all(error <= TOLERANCE for error in errors):
            told = ', '.join(f'{error:.1e}' for error in errors)
            raise ExportError(f'{out}: differs by {told} from the network; nothing was written')
        publish(new, out)
    return errors


def _program(backbone: nn.Module, size: tuple[int, int, int], dynamic: bool) -> torch.export.ExportedProgram:
    dims = {0: torch.export.Dim('batch'), 2: torch.export.Dim('height', min=33)}
    dims[3] = torch.export.Dim('width', min=33)
    shapes = {'image': dims} if dynamic else None
    with torch.no_grad():
        return torch.export.export(backbone, (torch.zeros(_shape(backbone, size)),), dynamic_shapes=shapes)


def _shape(backbone: nn.Module, size: tuple[int, int, int]) -> tuple[int, int, int, int]:
    batch, height, width = size
    return batch, next(backbone.stem.parameters()).shape[1], height, width


def _write_pt2(backbone: nn.Module, program: torch.export.ExportedProgram, path: Path) -> Callable:
    torch.export.save(program, path)
    return torch.export.load(path).module()


def _write_onnx(backbone: nn.Module, program: torch.export.ExportedProgram, path: Path) -> Callable:
    import onnxruntime

    names = [f'c{index + 2}' for index in backbone.out_indices]
    model = torch.onnx.export(
        program, dynamo=True, input_names=['image'], output_names=names, opset_version=OPSET, verbose=False
    )
    model.save(path)
    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    return lambda image: map(torch.from_numpy, session.run(names, {'image': image.numpy()}))


def _error(
    backbone: nn.Module, run: Callable[[Tensor], Iterable[Tensor]], size: tuple[int, int, int]
) -> float:
    image = torch.randn(_shape(backbone, size), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        got, wanted = list(run(image)), backbone(image)
    if [g.shape for g in got] != [w.shape for w in wanted]:
        return inf
    return torch.stack([(g - w).abs().max() / w.abs().max() for g, w in zip(got, wanted)]).max().item()
