"""Classifiers: the published recipes value by value, whole runs, weights into a detector and back."""

from __future__ import annotations

import math
import re
import sys
from importlib.util import find_spec

import cv2
import numpy as np
import pytest
import torch
from authors_files import classification_file
from cifar_files import write_cifar
from mmengine.config import Config
from mmengine.registry import MODELS, PARAM_SCHEDULERS, init_default_scope
from oracle import Oracle, random_state
from tiny_run import CONFIGS, load_tool, read_scalars, write_config, write_data

from mmhcg import runs
from mmhcg.installation import hint
from mmhcg.runs import UserError, preflight, pretrained
from mmhcg.runs.config import load_config
from mmhcg.runs.data_checks import check_data
from mmhcg.runs.datasets import leaf_datasets, move_data
from mmhcg.stack.checkpoints import load_checkpoint_file
from mmhcg.weights import WeightsError, convert_checkpoint, save_weights

PRETRAIN = CONFIGS / 'pretrain'
IMAGENET = {'b': 1244, 'c': 2428}
CIFAR = [(arch, classes) for arch in ('a1', 'a2', 'a3') for classes in (10, 100)]
NAMES = [f'hcgnet_{arch}_in1k' for arch in IMAGENET] + [f'hcgnet_{a}_cifar{c}' for a, c in CIFAR]
needs_mmpretrain = pytest.mark.skipif(
    find_spec('mmpretrain') is None, reason="needs mmpretrain: pip install -e '.[standalone,pretrain]'"
)


def read(name):
    return Config.fromfile(PRETRAIN / f'{name}.py')


def build(cfg):
    init_default_scope('mmpretrain')
    return MODELS.build(cfg.model)


def test_these_are_all_configs():
    assert sorted(path.stem for path in PRETRAIN.glob('*.py')) == sorted(NAMES)


@pytest.mark.parametrize('name', NAMES)
def test_rate_of_every_epoch_is_that_of_the_closed_formula(name):
    cfg = read(name)
    doublings, top = (6, 0.05) if 'in1k' in name else (7, 0.1)
    expected = [
        top * (1 + math.cos(math.pi * epoch / period)) / 2
        for period in (10 * 2**n for n in range(doublings))
        for epoch in range(period)
    ]
    assert len(expected) == cfg.train_cfg.max_epochs == (630 if 'in1k' in name else 1270)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=top)
    assert cfg.param_scheduler.by_epoch
    schedule = PARAM_SCHEDULERS.build(cfg.param_scheduler, default_args=dict(optimizer=optimizer))
    rates = []
    for _ in expected:
        rates.append(optimizer.param_groups[0]['lr'])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize('name', NAMES)
def test_recipe_is_the_published_one(name):
    """Yang et al., AAAI 2020, arXiv 1908.09699: training on CIFAR and on ImageNet."""
    cfg = read(name)
    imagenet = 'in1k' in name
    decay, mixup = (4e-5, 0.4) if imagenet else (1e-4, 1.0)
    optimizer = dict(type='SGD', lr=0.1, momentum=0.9, nesterov=True, weight_decay=decay)
    assert cfg.optim_wrapper.to_dict() == dict(type='OptimWrapper', optimizer=optimizer)  # on everything
    assert cfg.model.train_cfg.augments.to_dict() == dict(type='Mixup', alpha=mixup)
    assert cfg.train_dataloader.batch_size == 128
    assert cfg.train_dataloader.sampler.shuffle and not cfg.test_dataloader.sampler.shuffle
    steps = [(step.type, step.get('scale', step.get('crop_size'))) for step in pipeline(cfg, 'train')]
    if imagenet:
        assert cfg.auto_scale_lr.to_dict() == dict(enable=True, base_batch_size=256)
        assert steps[1:] == [('RandomResizedCrop', 224), ('RandomFlip', None), ('PackInputs', None)]
        test_steps = [(step.type, step.get('scale', step.get('crop_size'))) for step in pipeline(cfg, 'test')]
        assert test_steps[1:] == [('ResizeEdge', 256), ('CenterCrop', 224), ('PackInputs', None)]
        assert pipeline(cfg, 'test')[1].edge == 'short'
    else:
        assert 'auto_scale_lr' not in cfg
        assert steps == [('RandomCrop', 32), ('RandomFlip', None), ('PackInputs', None)]
        assert pipeline(cfg, 'train')[0].padding == 4
        assert cfg.model.backbone.drop_block == dict(block_size=2)
        (hook,) = cfg.custom_hooks
        assert hook == dict(type='mmhcg.DropBlockSchedule', periods=cfg.param_scheduler.periods, end=0.1)
    assert pipeline(cfg, 'train')[-2].prob == 0.5


def pipeline(cfg, mode):
    return cfg[f'{mode}_dataloader'].dataset.pipeline


@needs_mmpretrain
@pytest.mark.parametrize(
    ('name', 'parameters'),
    [
        ('hcgnet_b_in1k', 12_845_501),
        ('hcgnet_c_in1k', 42_153_208),
        ('hcgnet_a1_cifar10', 1_065_301),
        ('hcgnet_a2_cifar10', 3_069_149),
        ('hcgnet_a3_cifar10', 11_239_897),
        ('hcgnet_a1_cifar100', 1_102_651),
        ('hcgnet_a2_cifar100', 3_133_679),
        ('hcgnet_a3_cifar100', 11_363_647),
    ],
)
def test_classifiers_have_the_published_sizes(name, parameters):
    cfg = read(name)
    with torch.device('meta'):
        model = build(cfg)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    classes = {'in1k': 1000, 'cifar10': 10, 'cifar100': 100}[name.split('_')[2]]
    assert model.head.num_classes == model.data_preprocessor.num_classes == classes
    if 'cifar' in name:
        datasets = [leaf for mode in ('train', 'val', 'test') for leaf in leaf_datasets(cfg, mode)]
        assert [dataset.classes for dataset in datasets] == [classes] * 3
    else:
        assert cfg.model.head.loss.num_classes == classes


@needs_mmpretrain
def test_smoothing_goes_to_the_other_classes_also_of_mixed_images():
    init_default_scope('mmpretrain')
    loss = MODELS.build(read('hcgnet_b_in1k').model.head.loss)
    scores = torch.randn(4, 1000, dtype=torch.float64)
    labels, others = torch.tensor([3, 999, 0, 7]), torch.tensor([5, 999, 1, 2])
    smooth = torch.full((2, 4, 1000), 0.1 / 999, dtype=torch.float64)
    smooth[0, range(4), labels] = smooth[1, range(4), others] = 0.9
    log = scores.log_softmax(1)
    assert loss(scores, labels).item() == pytest.approx(-(smooth[0] * log).sum(1).mean().item(), rel=1e-6)
    one, two = (torch.nn.functional.one_hot(index, 1000).double() for index in (labels, others))
    mixed = -((0.3 * smooth[0] + 0.7 * smooth[1]) * log).sum(1).mean().item()
    assert loss(scores, 0.3 * one + 0.7 * two).item() == pytest.approx(mixed, rel=1e-6)


TINY = """
_base_ = {base!r}
model = dict(
    data_preprocessor=dict(num_classes={classes}),
    backbone=dict(arch=dict(_delete_=True, blocks=(1, 1, 1, 1), growth_rates=(8, 8, 8, 8))),
    head=dict(in_channels=23, num_classes={classes}, loss=dict(num_classes={classes})),
)
loader = dict(batch_size=4, num_workers=0, persistent_workers=False)
data = dict(metainfo=dict(classes=('one', 'two')), serialize_data=False)  # which collects garbage for long
train_dataloader = dict(dataset=data, **loader)
val_dataloader = dict(dataset=data, **loader)
test_dataloader = val_dataloader
val_evaluator = dict(topk=(1,))
test_evaluator = val_evaluator
train_cfg = dict(max_epochs=2, val_interval=1)
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(interval=1))
"""
TINY_CIFAR = """
_base_ = {base!r}
model = dict(
    backbone=dict(arch=dict(_delete_=True, blocks=(1, 1, 1), growth_rates=(4, 4, 4), stem='cifar')),
    head=dict(in_channels=9),
)
loader = dict(batch_size=5, num_workers=0, persistent_workers=False)
data = dict(serialize_data=False)
train_dataloader = dict(dataset=data, **loader)
val_dataloader = dict(dataset=data, **loader)
test_dataloader = val_dataloader
train_cfg = dict(max_epochs=3, val_interval=1)
custom_hooks = [dict(type='mmhcg.DropBlockSchedule', periods=(3,), end=0.5)]
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(interval=1))
"""


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """tiny ImageNet and CIFAR configs, with `imagenet/` of two classes, pictures of 40x64, and `cifar/`."""
    folder = tmp_path_factory.mktemp('pretrain')
    base = str(PRETRAIN / 'hcgnet_b_in1k.py')
    (folder / 'in1k.py').write_text(TINY.format(base=base, classes=2))
    (folder / 'cifar.py').write_text(TINY_CIFAR.format(base=str(PRETRAIN / 'hcgnet_a1_cifar10.py')))
    random = np.random.default_rng(0)
    for split, count in (('train', 4), ('val', 3)):
        for label, name in enumerate(('one', 'two')):
            place = folder / 'imagenet' / split / name
            place.mkdir(parents=True)
            for number in range(count):
                picture = random.integers(0, 100, (40, 64, 3), np.uint8) + 120 * label
                cv2.imwrite(str(place / f'{number}.png'), picture)
    write_cifar(folder / 'cifar', 10)
    return folder


@pytest.fixture(scope='module')
def trained(folder):
    """The work dir of a tiny run on ImageNet's layout, through tools/train.py."""
    if find_spec('mmpretrain') is None:
        pytest.skip("needs mmpretrain: pip install -e '.[standalone,pretrain]'")
    argv = ['--data-root', folder / 'imagenet', '--work-dir', folder / 'run', '--seed', 0]
    load_tool('train').main([str(arg) for arg in (folder / 'in1k.py', *argv)])
    return folder / 'run'


@pytest.mark.slow
def test_a_run_has_the_rate_of_its_batch_and_scores_itself(trained):
    lines = read_scalars(trained)
    rates = [line['lr'] for line in lines if 'lr' in line]
    full = 0.1 * 4 / 256
    expected = [full, full, full * (1 + math.cos(math.pi / 10)) / 2, full * (1 + math.cos(math.pi / 10)) / 2]
    assert rates == pytest.approx(expected, rel=1e-6)
    assert len([line for line in lines if 'accuracy/top1' in line]) == 2


@pytest.mark.slow
def test_weights_decay_everywhere(trained):
    groups = load_checkpoint_file(trained / 'epoch_2.pth')['optimizer']['param_groups']
    assert {group['weight_decay'] for group in groups} == {4e-5}
    names = load_checkpoint_file(trained / 'epoch_2.pth')['state_dict']
    learned = [name for name in names if 'running' not in name and 'num_batches' not in name]
    assert sum(len(group['params']) for group in groups) == len(learned)


@pytest.mark.slow
def test_the_tool_scores_a_checkpoint(trained, folder, capfd):
    argv = [folder / 'in1k.py', trained / 'epoch_2.pth', '--data-root', folder / 'imagenet']
    argv += ['--work-dir', folder / 'tested', '--out', folder / 'scores.pkl']
    load_tool('test').main(list(map(str, argv)))
    assert 'accuracy/top1' in capfd.readouterr().out
    predictions = np.load(folder / 'scores.pkl', allow_pickle=True)
    right = [int(p['pred_label']) == int(p['gt_label']) for p in predictions]
    scores = runs.test(
        folder / 'in1k.py', trained / 'epoch_2.pth', folder / 'imagenet', work_dir=folder / 'again'
    )
    assert len(right) == 6 and scores['accuracy/top1'] == pytest.approx(100 * sum(right) / 6)
    with pytest.raises(UserError, match='--show-dir draws detections'):
        runs.test(folder / 'in1k.py', trained / 'epoch_2.pth', folder / 'imagenet', show_dir=folder / 'drawn')


@pytest.mark.slow
def test_a_finished_runs_backbone_starts_a_detector(trained, tmp_path):
    """By init_cfg alone: the checks of a run let it pass, and every entry arrives."""
    cfg = Config.fromfile(write_config(tmp_path))
    init = dict(_delete_=True, type='Pretrained', checkpoint=str(trained / 'epoch_2.pth'), prefix='backbone.')
    cfg.merge_from_dict({'model.backbone.init_cfg': init})
    move_data(cfg, str(write_data(tmp_path)))
    preflight.check_backbone(cfg)
    pretrained.find_pretrained(cfg)
    init_default_scope('mmdet')
    backbone = MODELS.build(cfg.model.backbone)
    backbone.init_weights()
    expected = load_checkpoint_file(trained / 'epoch_2.pth')['state_dict']
    state = backbone.state_dict()
    assert {f'backbone.{name}' for name in state} == {n for n in expected if n.startswith('backbone.')}
    assert all(torch.equal(expected[f'backbone.{name}'], entry) for name, entry in state.items())


@pytest.mark.slow
@needs_mmpretrain
def test_cifar_trains_with_a_growing_dropblock_and_resumes(folder):
    argv = [folder / 'cifar.py', '--data-root', folder / 'cifar', '--work-dir', folder / 'cifar_run']
    load_tool('train').main([*map(str, argv), '--cfg-options', 'train_cfg.max_epochs=2'])
    runner = runs.train(folder / 'cifar.py', folder / 'cifar_run', folder / 'cifar', resume=True)
    assert runner.epoch == 3
    blocks = [module for module in runner.model.modules() if type(module).__name__ == 'DropBlock']
    assert [block.probability for block in blocks] == [0.5, 0.5]
    scores = runs.test(
        folder / 'cifar.py', folder / 'cifar_run/epoch_3.pth', folder / 'cifar', work_dir=folder / 't'
    )
    assert scores.keys() == {'accuracy/top1', 'accuracy/top5'}


@needs_mmpretrain
@pytest.mark.parametrize('size', [(33, 57), (32, 32), (64, 20)])
@pytest.mark.parametrize('config', ['in1k', 'cifar'])
def test_classifiers_take_images_of_any_size(folder, config, size):
    model = build(load_config(folder / f'{config}.py')).eval()
    image = torch.randn(2, 3, *size)
    with torch.no_grad():
        features = model.backbone(image)[-1]
        scores = model(image, mode='tensor')
        pooled = model.head.fc(features.mean((2, 3)))
    torch.testing.assert_close(scores, pooled, rtol=1e-5, atol=1e-6)


def test_classifier_of_the_authors_file_is_kept(tmp_path):
    entries = classification_file()
    generator = torch.Generator().manual_seed(0)
    entries['classifier.weight'] = torch.randn(1000, 1244, generator=generator)
    entries['classifier.bias'] = torch.randn(1000, generator=generator)
    torch.save({'net': {f'module.{name}': t for name, t in entries.items()}}, tmp_path / 'b.pth.tar')
    argv = [str(tmp_path / 'b.pth.tar'), str(tmp_path / 'b.safetensors'), '--with-classifier']
    load_tool('convert_checkpoint').main(argv)
    state = load_checkpoint_file(tmp_path / 'b.safetensors')
    backbone, _ = convert_checkpoint(tmp_path / 'b.pth.tar')
    report = convert_checkpoint(tmp_path / 'b.pth.tar', with_classifier=True)[1]
    assert (report.kind, report.arch, report.left_over) == ('classification', 'b', ())
    expected = {f'backbone.{name}': entry for name, entry in backbone.items()}
    expected |= {f'head.fc.{name}': entries[f'classifier.{name}'] for name in ('weight', 'bias')}
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], entry) for name, entry in expected.items())
    with pytest.raises(SystemExit, match='2'):
        load_tool('convert_checkpoint').main([*argv, '--reverse'])
    if find_spec('mmpretrain'):
        cfg = load_config(PRETRAIN / 'hcgnet_b_in1k.py')
        with torch.device('meta'):  # not to draw weights that are replaced
            model = build(cfg).eval()
        model.load_state_dict(state, assign=True)
        image = torch.randn(1, 3, 64, 96, generator=generator)
        with torch.no_grad():
            scores = model.head(model.extract_feat(image))
            last = Oracle(random_state('b', dtype=torch.float32), 'b')(image)[-1]
            plain = last.mean((2, 3)) @ entries['classifier.weight'].T + entries['classifier.bias']
        assert (scores - plain).abs().max() <= 1e-4 * plain.abs().max()


def test_a_file_without_a_classifier_cannot_keep_it(tmp_path):
    entries = {name: t for name, t in classification_file().items() if 'classifier' not in name}
    save_weights(entries, tmp_path / 'b.safetensors')
    with pytest.raises(WeightsError, match='without a classifier, which --with-classifier wants'):
        convert_checkpoint(tmp_path / 'b.safetensors', with_classifier=True)


def test_data_root_moves_a_classifiers_data_and_keeps_what_they_are():
    cfg = read('hcgnet_b_in1k')
    move_data(cfg, '/new')
    for mode, split in (('train', 'train'), ('val', 'val'), ('test', 'val')):
        (dataset,) = leaf_datasets(cfg, mode)
        assert (dataset.data_root, dataset.split) == ('/new', split)
        assert 'ann_file' not in dataset and 'data_prefix' not in dataset


@pytest.mark.parametrize(
    ('config', 'data', 'message'),
    [
        ('in1k', 'nothing', r'train_dataloader: no folder \S+nothing/train\. --data-root DIR names'),
        ('cifar', 'nothing', r'train_dataloader: no \S+data_batch_1\.bin: .*--data-root DIR names'),
        (
            'in1k',
            'flat',
            r'train_dataloader: \S+flat/train has 1 folders, one a class, and the head 2 classes',
        ),
        ('cifar', 'short', r'test_batch\.bin has 5 bytes'),
        ('cifar', 'label', r'record 0 has the label 255, of 10 classes'),
    ],
)
def test_data_that_is_not_there_is_named_before_the_run(folder, tmp_path, config, data, message):
    cfg = Config.fromfile(folder / f'{config}.py')
    if data == 'flat':
        (tmp_path / 'flat/train/one').mkdir(parents=True)
    elif data in ('short', 'label'):
        write_cifar(tmp_path / data, 10)
        content = b'short' if data == 'short' else b'\xff' * 3073
        (tmp_path / data / 'cifar-10-batches-bin/test_batch.bin').write_bytes(content)
    move_data(cfg, str(tmp_path / data))
    with pytest.raises(UserError, match=message):
        check_data(cfg, ('train', 'val'))


def test_lists_of_files_stand_in_for_folders(folder, tmp_path):
    (tmp_path / 'meta').mkdir()
    cfg = Config.fromfile(folder / 'in1k.py')
    move_data(cfg, str(tmp_path))
    for split in ('train', 'val'):
        (tmp_path / split).mkdir()
        (tmp_path / 'meta' / f'{split}.txt').touch()
    check_data(cfg, ('train', 'val'))


@pytest.mark.parametrize('own', [dict(data_prefix='pictures'), dict(ann_file='meta/mine.txt')])
def test_files_in_a_layout_of_their_own_are_left_to_mmpretrain(folder, tmp_path, own):
    cfg = Config.fromfile(folder / 'in1k.py')
    move_data(cfg, str(tmp_path))  # where neither folders nor lists are
    for mode in ('train', 'val'):
        cfg[f'{mode}_dataloader'].dataset.update(own)
    check_data(cfg, ('train', 'val'))


def test_cifar_of_other_classes_than_the_heads_is_refused(folder):
    cfg = Config.fromfile(folder / 'cifar.py')
    cfg.model.head.num_classes = 100
    with pytest.raises(UserError, match='CIFAR-10 for a head of 100 classes'):
        check_data(cfg, ('train', 'val'))
    del cfg.model.head  # as in self-supervision
    with pytest.raises(UserError, match=r'data_batch_1\.bin: '):  # there is no data here
        check_data(cfg, ('train', 'val'))


def test_without_mmpretrain_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, 'mmpretrain', None)
    mend = re.escape(hint('pretrain'))
    with pytest.raises(UserError, match=f'trains a classifier, and mmpretrain cannot.*: {mend}$'):
        load_config(PRETRAIN / 'hcgnet_b_in1k.py')
