"""Are HCGNet's kernels and mmcv's operators right on this GPU, and how fast is the network there?

    python benchmarks/gpu.py --out gpu.csv

adds rows to gpu.csv, and fails where an answer is wrong. With `--device cpu` it shows that the script works.
"""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
import traceback
from itertools import product
from pathlib import Path

import torch

REPO = Path(__file__).resolve().parents[1]
PARTS = {  # what runs on the GPU where there is one
    'kernels': ['tests/test_kernels.py'],
    'operators': ['tests/test_mmcv_ops.py', 'tests/test_mmcv_sampling_ops.py', '-k', 'cuda'],
}
INFER = ('eager', 'deploy', 'deploy-graph', 'compile', 'reduce-overhead', 'max-autotune')
TRAIN = ('eager', 'graph', 'compile', 'reduce-overhead', 'max-autotune')
ON_CPU = ('eager', 'deploy')


def check(part: str, device: str) -> bool:
    """Whether the tests of a part pass."""
    if device == 'cpu':
        print(f'{part}: left out, needs CUDA')
        return True
    if part == 'operators' and not importlib.util.find_spec('mmdet'):
        print('operators: left out, MMDetection is not installed')
        return True
    command = [sys.executable, '-m', 'pytest', '-q', '-n', '0', *PARTS[part]]
    return subprocess.run(command, cwd=REPO).returncode == 0


def measure(device: str, shape: list[int], repeats: int, out: Path) -> list[str]:
    """Adds rows to `out`; returns what did not run."""
    import benchmark

    failed = []
    common = ['--device', device, '--shape', *map(str, shape), '--repeats', str(repeats), '--csv', str(out)]
    modes = [('infer', mode) for mode in INFER] + [('train', mode) for mode in TRAIN]
    for dtype, (phase, mode) in product(('bf16', 'fp32'), modes):
        if device == 'cpu' and (mode not in ON_CPU or dtype != 'fp32'):
            print(f'{dtype} {phase} {mode}: left out, needs CUDA')
            continue
        runs = [[]] if mode in benchmark.COMPILED or device == 'cpu' else [[], ['--kernels', '--against']]
        for extra in runs:  # with kernels against the plain formulation alone
            argv = ['--dtype', dtype, '--phase', phase, '--mode', mode, *common, *extra]
            print(*argv)
            try:
                benchmark.main(argv)
            except Exception:  # one mode that fails, for lack of memory or otherwise, leaves the others
                traceback.print_exc()
                failed.append(f'{dtype} {phase} {mode}')
            if device == 'cuda':
                torch._dynamo.reset()
                torch.cuda.empty_cache()
    return failed


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description='Check and measure HCGNet on a GPU.')
    parser.add_argument('--out', type=Path, required=True, metavar='FILE.csv', help='rows are added to it')
    parser.add_argument('--parts', nargs='+', choices=(*PARTS, 'speed'), default=[*PARTS, 'speed'])
    parser.add_argument('--device', choices=('cuda', 'cpu'), default='cuda')
    parser.add_argument('--shape', type=int, nargs=3, default=[2, 800, 1216], metavar=('N', 'H', 'W'))
    parser.add_argument('--repeats', type=int, default=30)
    args = parser.parse_args(argv)
    if args.device == 'cuda' and not torch.cuda.is_available():
        parser.error(f'PyTorch {torch.__version__} sees no GPU; --device cpu tries the script without one')
    sys.path[:0] = [str(REPO), str(REPO / 'tools')]
    if 'speed' in args.parts:
        from mmhcg.analysis.benchmark import Result
        from mmhcg.runs import UserError
        from mmhcg.runs.places import check_table

        try:
            check_table('--out', args.out, Result.__annotations__)
        except UserError as error:
            parser.error(str(error))
    failed = [part for part in args.parts if part in PARTS and not check(part, args.device)]
    if 'speed' in args.parts:
        failed += measure(args.device, args.shape, args.repeats, args.out)
    if failed:
        sys.exit(f'failed: {", ".join(failed)}')


if __name__ == '__main__':
    main()
