"""Files that are broken or meant to harm: each tool refuses them, says why, and runs no code of theirs."""

from __future__ import annotations

import os
import re
import resource
import sys
import zipfile
from collections.abc import Callable
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from authors_files import classification_layout
from mmengine.config import Config
from oracle import random_state
from tiny_run import load_tool, write_config, write_data

from mmhcg.runs import UserError
from mmhcg.runs.loading import check_loading
from mmhcg.stack.checkpoints import load_checkpoint_file

GIGABYTE = 2**30


class Touch:
    """Pickled as a call that makes the file `canary`."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple:
        return os.system, (f'touch {self.canary}',)


def weights_of(content: dict) -> dict:
    return content.get('state_dict') or content['net']


def change_first(change: Callable[[torch.Tensor], Any]) -> Callable[[dict], None]:
    """Change the first convolution's weight, which every network has."""

    def damage(content: dict) -> None:
        weights = weights_of(content)
        name = next(name for name in weights if 'stem' in name or 'features.conv0' in name)
        weights[name] = change(weights[name])

    return damage


def rename_all(content: dict) -> None:
    weights = weights_of(content)
    for name in list(weights):
        weights[f'another.{name}'] = weights.pop(name)


def spoil_last(content: dict) -> None:
    weights_of(content)[list(weights_of(content))[-1]].view(-1)[-1] = float('nan')


HUGE = torch.zeros(1).expand(10**6, 10**6)
DAMAGES = {  # what is done to the content of a good file: the reason that is given
    'call': (None, r'refused, for it asks for (posix|nt|os)\.system'),
    'huge view': (change_first(lambda weight: HUGE), 'claims 1000000000000 elements and stores 1'),
    'huge view aside': (lambda content: weights_of(content).update(x=HUGE), 'claims 1000000000000 elements'),
    'names': (rename_all, r'is missing|none of its .* names|is no classifier|no classifier'),
    'shape': (change_first(lambda weight: weight[..., :2]), r'has shape \(.*, 2\) instead of \(.*, 3\)'),
    'NaN': (change_first(lambda weight: weight * float('nan')), 'holds NaN or infinity'),
    'one NaN': (spoil_last, 'holds NaN or infinity'),
    'no tensor': (change_first(lambda weight: 'weight'), r'is no tensor \(str\)'),
    'empty': (None, 'the file is empty'),
    'bomb': (None, 'refused, for its records are compressed .* they unpack to 3,0.. MB'),
}
TOOLS = ['load_from', 'resume', 'test', 'convert']


@pytest.fixture(scope='module')
def good(tmp_path_factory) -> Path:
    """A folder with tiny.py, shapes/, a checkpoint of a run, and a file as the authors'."""
    folder = tmp_path_factory.mktemp('good')
    config, data = write_config(folder), write_data(folder)
    argv = [config, '--data-root', data, '--work-dir', folder / 'run', '--no-pretrained', '--cfg-options']
    options = ['train_cfg.max_epochs=1', 'train_cfg.val_interval=2']
    load_tool('train').main([*map(str, argv), *options])
    weights = classification_layout(random_state('b', dtype=torch.float32))
    channels = weights['features.norm5.weight'].numel()
    classifier = {'classifier.weight': torch.zeros(9, channels), 'classifier.bias': torch.zeros(9)}
    torch.save({'net': {**weights, **classifier}}, folder / 'authors.pth')
    return folder


def damage(source: Path, target: Path, name: str, canary: Path) -> None:
    """Write what `name` stands for to `target`."""
    if name == 'empty':
        target.touch()
        return
    content = deepcopy(load_checkpoint_file(source))
    if name == 'call':
        content['meta'] = {**content.get('meta', {}), 'time': Touch(canary)}
    elif name != 'bomb':
        DAMAGES[name][0](content)
    torch.save(content, target)
    if name == 'bomb':
        add_bomb(target)


def add_bomb(path: Path) -> None:
    """A hundred records of 30 MB, all of them the same 30 KB of the file."""
    with zipfile.ZipFile(path, 'a', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr('archive/data/bomb0', bytes(30_000_000))
        bomb = archive.filelist[-1]
        for number in range(1, 100):
            copy = deepcopy(bomb)
            copy.filename = copy.orig_filename = f'archive/data/bomb{number}'
            archive.filelist.append(copy)


@contextmanager
def memory_of(size: int):
    """At most so many bytes more than now, where the system can be told so."""
    if sys.platform != 'linux':
        yield
        return
    now = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def use(tool: str, file: Path, good: Path, folder: Path) -> None:
    """Hand the file to a tool. Where it takes the file, there is nothing more to train."""
    if tool == 'convert':
        load_tool('convert_checkpoint').main([str(file), str(folder / 'out.safetensors')])
        return
    argv = [str(good / 'tiny.py'), '--data-root', str(good / 'shapes'), '--work-dir', str(folder / 'run')]
    if tool == 'test':
        load_tool('test').main([argv[0], str(file), *argv[1:]])
    elif tool == 'resume':
        load_tool('train').main([*argv, '--resume', str(file), '--cfg-options', 'train_cfg.max_epochs=1'])
    else:
        load_tool('train').main([*argv, '--cfg-options', f'load_from={file}', 'train_cfg.max_epochs=0'])


def refusal(tool: str, file: Path, good: Path, folder: Path, capfd: pytest.CaptureFixture) -> str:
    """The one message with which the tool refuses the file."""
    with memory_of(2 * GIGABYTE), pytest.raises(SystemExit) as stop:
        use(tool, file, good, folder)
    assert stop.value.code == 2
    message = capfd.readouterr().err.rpartition('error: ')[2]
    assert file.name in message
    assert not list((folder / 'run').glob('*.pth')) and not (folder / 'out.safetensors').exists()
    return message


@pytest.mark.slow
@pytest.mark.parametrize('tool', TOOLS)
@pytest.mark.parametrize('name', DAMAGES)
def test_hostile_files_are_refused(good, tmp_path, capfd, name, tool):
    source = good / ('authors.pth' if tool == 'convert' else 'run/epoch_1.pth')
    damage(source, tmp_path / 'hostile.pth', name, tmp_path / 'canary')
    message = refusal(tool, tmp_path / 'hostile.pth', good, tmp_path, capfd)
    assert re.search(DAMAGES[name][1], message), message
    assert not (tmp_path / 'canary').exists()


@pytest.mark.slow
@pytest.mark.parametrize('tool', ['load_from', 'resume', 'test'])
def test_configs_in_a_checkpoint_are_not_run(good, tmp_path, tool):
    """Older software keeps its config there, so that such a file is no fault; it is text and stays text."""
    content = load_checkpoint_file(good / 'run/epoch_1.pth')
    code = f'open({str(tmp_path / "canary")!r}, "w")'
    content['meta'].update(config=code, cfg=code)
    torch.save(content, tmp_path / 'code.pth')
    use(tool, tmp_path / 'code.pth', good, tmp_path)
    assert not (tmp_path / 'canary').exists()


STATES = {  # damage to what only --resume reads: the reason
    'momentum of another shape': (
        lambda c: c['optimizer']['state'][0].update(momentum_buffer=torch.zeros(7)),
        r'momentum_buffer of shape \(7,\) for a weight of \(32, 3, 3, 3\)',
    ),
    'momentum of NaN': (
        lambda c: c['optimizer']['state'][0]['momentum_buffer'].fill_(float('nan')),
        r'optimizer\.state\.0\.momentum_buffer holds NaN',
    ),
    'fewer weights': (
        lambda c: c['optimizer']['param_groups'][0]['params'].pop(),
        "size of optimizer's group",
    ),
    'huge view in the log': (lambda c: c['message_hub'].update(x=HUGE), r'message_hub\.x claims 10000000'),
    'list for a dict': (lambda c: c.update(meta=[]), 'its `meta` is not a dict'),
    'dict that holds itself': (
        lambda c: c['optimizer'].update(x=c['optimizer'], state=HUGE),
        'claims 10000000',
    ),
    'wrong head': (
        lambda c: c['state_dict'].update({'roi_head.bbox_head.fc_cls.bias': torch.zeros(81)}),
        r'fc_cls\.bias has shape \(81,\) instead of \(4,\)',
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize('name', STATES)
def test_hostile_training_states_are_refused(good, tmp_path, capfd, name):
    content = load_checkpoint_file(good / 'run/epoch_1.pth')
    STATES[name][0](content)
    torch.save(content, tmp_path / 'hostile.pth')
    message = refusal('resume', tmp_path / 'hostile.pth', good, tmp_path, capfd)
    assert re.search(STATES[name][1], message), message


def test_another_model_to_start_from_is_refused_whatever_the_backbone():
    runner = SimpleNamespace(model=torch.nn.Linear(2, 2))
    cfg = Config(dict(load_from='other.pth', resume=False, model=dict(type='Linear')))
    check_loading(cfg, {'state_dict': {'module.weight': torch.zeros(9)}}, runner)  # a head for other classes
    with pytest.raises(
        UserError, match=r"other\.pth: none of its names .* 'conv\.weight' instead of 'weight'"
    ):
        check_loading(cfg, {'state_dict': {'conv.weight': torch.zeros(9)}}, runner)
