"""Two processes on the CPU train through tools/train.py."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from tiny_run import REPO, read_scalars, write_config, write_data


@pytest.mark.skipif(torch.cuda.is_available(), reason='with GPUs, each process would need one of its own')
def test_torchrun_trains_with_two_processes(tmp_path):
    write_config(tmp_path)
    write_data(tmp_path)
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2']
    command += [str(REPO / 'tools/train.py'), 'tiny.py', '--launcher', 'pytorch', '--no-pretrained']
    command += ['--data-root', 'shapes', '--work-dir', 'two', '--cfg-options', 'train_cfg.max_epochs=1']
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    steps = [line for line in read_scalars(tmp_path / 'two') if 'loss' in line]
    assert len(steps) == 2  # 8 pictures, 2 processes, batches of 2
    assert (tmp_path / 'two/epoch_1.pth').is_file()
    assert 'coco/bbox_mAP' in read_scalars(tmp_path / 'two')[-1]
