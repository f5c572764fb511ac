"""What a run does to its config before it starts, and what it refuses."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.dataset import DefaultSampler
from mmengine.hub import get_config
from pycocotools import mask as mask_api
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tiny_run import CLASSES, CONFIGS, load_tool

from mmhcg import HCGNet
from mmhcg.data import make_shapes
from mmhcg.network import Trunk
from mmhcg.runs import UserError, launch, preflight, pretrained, train
from mmhcg.runs.coco_metric import use_twelve_numbers
from mmhcg.runs.config import build_detector
from mmhcg.runs.datasets import leaf_datasets, move_data
from mmhcg.stack.checkpoints import CheckpointError
from mmhcg.weights import save_weights
from mmhcg.weights.fit import check_fit, load_weights

MASK_B = CONFIGS / 'mask_rcnn_hcgnet_b_fpn_1x_coco.py'
WEIGHTS = 'checkpoints/hcgnet_b_in1k.safetensors'
BACKBONES = ['mask_rcnn_hcgnet_b_fpn_1x_coco.py', 'mask_rcnn_r50_fpn_1x_coco.py']

NORMS = (torch.nn.BatchNorm2d, lambda channels: torch.nn.GroupNorm(2, channels))


def test_data_root_moves_train_val_test_and_evaluators():
    cfg = Config.fromfile(MASK_B)
    move_data(cfg, '/new')
    for mode, split in (('train', 'train2017'), ('val', 'val2017'), ('test', 'val2017')):
        (dataset,) = leaf_datasets(cfg, mode)
        assert (dataset.data_root, dataset.data_prefix.img) == ('/new', f'{split}/')
        assert dataset.ann_file == f'annotations/instances_{split}.json'
    assert cfg.val_evaluator.ann_file == '/new/annotations/instances_val2017.json'
    assert cfg.test_evaluator.ann_file == '/new/annotations/instances_val2017.json'


def test_data_root_reaches_into_wrappers_and_lists():
    cfg = Config.fromfile(MASK_B)
    one = cfg.train_dataloader.dataset
    two = dict(one, ann_file='annotations/more.json')
    mix = dict(type='MultiImageMixDataset', dataset=one, pipeline=[])
    cfg.train_dataloader.dataset = dict(
        type='RepeatDataset', times=2, dataset=dict(type='ConcatDataset', datasets=[mix, two])
    )
    cfg.val_evaluator = [cfg.val_evaluator, dict(type='DumpDetResults', out_file_path='x.pkl')]
    cfg.test_evaluator = dict(type='Evaluator', metrics=[cfg.test_evaluator])
    move_data(cfg, '/new')
    assert [dataset.data_root for dataset in leaf_datasets(cfg, 'train')] == ['/new', '/new']
    assert [dataset.ann_file for dataset in leaf_datasets(cfg, 'train')] == [
        'annotations/instances_train2017.json',
        'annotations/more.json',
    ]
    assert cfg.val_evaluator[0].ann_file == '/new/annotations/instances_val2017.json'
    assert cfg.test_evaluator.metrics[0].ann_file == '/new/annotations/instances_val2017.json'
    assert 'ann_file' not in cfg.val_evaluator[1]


def test_data_root_leaves_an_empty_image_prefix_empty():
    cfg = Config.fromfile(MASK_B)
    cfg.val_dataloader.dataset.data_prefix.img = ''  # as in LVIS, whose file names start with the folder
    move_data(cfg, '/new')
    assert next(leaf_datasets(cfg, 'val')).data_prefix.img == ''


def test_data_root_keeps_names_below_the_old_root_and_replaces_others():
    cfg = Config.fromfile(MASK_B)
    cfg.train_dataloader.dataset.update(data_root='/old', ann_file='/old/annotations/mine.json')
    cfg.val_dataloader.dataset.update(data_root='', ann_file='x/v.json', data_prefix=dict(img='x/val'))
    cfg.val_evaluator.ann_file = '/elsewhere/v.json'
    move_data(cfg, '/new')
    (train_set,), (val_set,) = leaf_datasets(cfg, 'train'), leaf_datasets(cfg, 'val')
    assert train_set.ann_file == 'annotations/mine.json'
    assert (val_set.ann_file, val_set.data_prefix.img) == ('annotations/instances_val2017.json', 'val2017/')
    assert cfg.val_evaluator.ann_file == '/new/annotations/instances_val2017.json'


@pytest.mark.parametrize('name', BACKBONES)
def test_no_pretrained_leaves_nothing_frozen(name):
    from mmdet.registry import MODELS

    cfg = Config.fromfile(CONFIGS / name)
    cfg.model.backbone.norm_cfg.requires_grad = False
    note = pretrained.start_from_scratch(cfg, preflight.check_backbone(cfg))
    assert cfg.model.backbone.init_cfg is None
    assert 'frozen_stages=-1, norm_eval=False, norm_cfg.requires_grad=True.' in note
    assert bool(preflight.settle_batches(cfg)) == ('hcgnet' in name)
    backbone = MODELS.build(cfg.model.backbone)
    backbone.train()
    assert all(parameter.requires_grad for parameter in backbone.parameters())
    assert all(module.training for module in backbone.modules())


@pytest.mark.parametrize(
    ('images', 'size', 'batches'), [(7, 2, 3), (8, 2, 4), (5, 2, 2), (8, 3, 2), (9, 3, 3)]
)
def test_no_pretrained_batches_are_full(images, size, batches):
    from mmdet.registry import DATA_SAMPLERS

    cfg = Config.fromfile(MASK_B)
    cfg.train_dataloader.batch_size = size
    pretrained.start_from_scratch(cfg, preflight.check_backbone(cfg))
    preflight.settle_batches(cfg)
    dataset = [dict(width=2 + index % 2, height=2 + index // 2 % 2) for index in range(images)]
    dataset = type('Pictures', (list,), dict(get_data_info=list.__getitem__))(dataset)
    sampler = DefaultSampler(dataset, shuffle=False)
    arguments = dict(cfg.train_dataloader.batch_sampler, sampler=sampler, batch_size=size)
    batch_sampler = DATA_SAMPLERS.build(arguments)
    assert [len(batch) for batch in batch_sampler] == [size] * batches
    assert len(batch_sampler) == batches


def test_pretrained_file_is_found_under_either_suffix(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'checkpoints').mkdir()
    state = Trunk('b').state_dict()
    torch.save(state, tmp_path / 'checkpoints/hcgnet_b_in1k.pth')
    cfg = Config.fromfile(MASK_B)
    pretrained.find_pretrained(cfg)
    assert cfg.model.backbone.init_cfg.checkpoint == 'checkpoints/hcgnet_b_in1k.pth'
    save_weights(state, tmp_path / WEIGHTS)
    cfg = Config.fromfile(MASK_B)
    pretrained.find_pretrained(cfg)
    assert cfg.model.backbone.init_cfg.checkpoint == WEIGHTS


def test_weights_of_another_network_stop_a_run_before_it_starts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_weights(Trunk('b', out_indices=(0, 1, 2)).state_dict(), tmp_path / WEIGHTS)
    with pytest.raises(CheckpointError, match=r'does not fit HCGNet: stages\.\d.* is missing, and \d+ more'):
        train(MASK_B, data_root=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ['checkpoints']
    cfg = Config.fromfile(MASK_B)
    cfg.model.backbone.out_indices = (0, 1, 2)
    pretrained.find_pretrained(cfg)


def test_unreadable_weights_are_named_before_anything_starts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'checkpoints').mkdir()
    (tmp_path / WEIGHTS).touch()
    with pytest.raises(UserError, match=f'{WEIGHTS}: the file is empty'):
        pretrained.find_pretrained(Config.fromfile(MASK_B))


def test_checkpoint_of_another_model_is_refused(tmp_path):
    content = {'state_dict': {'layer1.weight': torch.zeros(1)}}
    model = torch.nn.Linear(2, 2)
    with pytest.raises(CheckpointError, match=r'does not fit Linear: weight is missing, and 1 more of 2 '):
        check_fit(tmp_path / 'other.pth', content, model)
    own = {f'module.{name}': tensor for name, tensor in model.state_dict().items()}
    check_fit('own.pth', {'state_dict': own}, model)
    part = {f'neck.{name[7:]}': own[name] for name in own}
    check_fit('part.pth', part, model, prefix='neck')
    with pytest.raises(CheckpointError, match='weight is missing'):  # as MMEngine would not find it
        check_fit('part.pth', {f'module.{name}': part[name] for name in part}, model, prefix='neck')
    own['module.bias'] = torch.zeros(3)
    with pytest.raises(CheckpointError, match=r'bias has shape \(3,\) instead of \(2,\)\. Is it'):
        check_fit('other_classes.pth', own, model)
    own['module.bias'] = torch.tensor([0.0, float('nan')])
    with pytest.raises(CheckpointError, match='bias holds NaN or infinity'):
        check_fit('diverged.pth', own, model)
    with pytest.raises(CheckpointError, match='holds a list and no weights'):
        check_fit('list.pth', [torch.zeros(1)], model)
    with pytest.raises(CheckpointError, match='It holds a backbone alone'):
        check_fit('backbone.pth', model.state_dict(), torch.nn.ModuleDict(dict(backbone=model)))


@pytest.mark.parametrize(
    ('name', 'change', 'message'),
    [
        ('0.weight', lambda t: t.numpy(), r'is no tensor \(ndarray\)'),
        ('0.weight', lambda t: t.int(), 'is of type torch.int32 instead of torch.float32 or'),
        ('0.weight', lambda t: t.cfloat(), 'is of type torch.complex64'),
        ('0.weight', lambda t: t.to(torch.float8_e4m3fn), 'is of type torch.float8_e4m3fn'),
        ('1.num_batches_tracked', lambda t: t.float(), 'is of type torch.float32 instead of torch.int64'),
        ('0.weight', lambda t: t[0, 0].expand(t.shape), 'claims 6 elements and stores 1'),
        ('0.weight', lambda t: t.double().fill_(1e300), 'holds NaN .* that float32 cannot hold'),
        ('1.running_var', lambda t: -t, 'is negative'),
        ('1.num_batches_tracked', lambda t: t - 1, 'is negative'),
        ('0.weight', lambda t: torch.nested.nested_tensor([t]), 'is no plain tensor: it is nested'),
    ],
)
def test_entries_that_are_not_what_they_should_be_do_not_fit(name, change, message):
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    state = dict(model.state_dict())
    state[name] = change(state[name])
    with pytest.raises(CheckpointError, match=rf'{name} {message}'):
        check_fit('odd.pth', state, model)


def test_other_precisions_and_tied_weights_fit():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2), torch.nn.Linear(2, 2))
    model.register_buffer('mask', torch.tensor([True]))
    model[2].weight = model[0].weight
    state = model.state_dict()
    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        changed = {k: t.to(dtype) if t.is_floating_point() else t for k, t in state.items()}
        check_fit('other.pth', changed, model)
    check_fit('tied.pth', state, model)


@pytest.mark.parametrize('prefix', ['', 'module.', 'backbone.', 'module.backbone.'])
def test_weights_are_loaded_from_whatever_wraps_them(prefix):
    model, saved = (torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3)) for _ in range(2))
    state = {f'{prefix}{name}': tensor for name, tensor in saved.state_dict().items()}
    del state[f'{prefix}1.num_batches_tracked']  # which old files lack
    load_weights('w.pth', {'state_dict': {5: torch.ones(1), **state}}, model)
    assert torch.equal(model[0].weight, saved[0].weight)
    del state[f'{prefix}1.weight']
    with pytest.raises(CheckpointError, match=r'w\.pth: does not fit Sequential: 1\.weight is missing'):
        load_weights('w.pth', state, model)


def test_weights_at_an_address_are_fetched_where_they_are_wanted_now(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path))
    (tmp_path / 'checkpoints').mkdir()  # of what has been downloaded
    torch.save({'weight': torch.ones(2)}, tmp_path / 'checkpoints/w.pth')
    address = 'https://example.com/w.pth'
    assert preflight.check_checkpoint(address) == {}
    assert preflight.check_checkpoint(address, fetch=True)['weight'].tolist() == [1, 1]


def test_home_may_be_written_as_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    torch.save(Trunk('b').state_dict(), tmp_path / 'w.pth')
    assert preflight.check_checkpoint('~/w.pth')
    cfg = Config.fromfile(MASK_B)
    cfg.model.backbone.init_cfg.checkpoint = '~/w.pth'
    pretrained.find_pretrained(cfg)
    assert cfg.model.backbone.init_cfg.checkpoint == str(tmp_path / 'w.pth')


def test_weights_of_another_kind_of_norm_do_not_fit():
    batch, group = (
        torch.nn.Sequential(torch.nn.Sequential(torch.nn.Conv2d(2, 4, 1), norm(4))) for norm in NORMS
    )
    with pytest.raises(CheckpointError, match=r'0\.1\.running_var is of a BatchNorm, and .* another'):
        check_fit('bn.pth', batch.state_dict(), group)
    with pytest.raises(CheckpointError, match=r'0\.1\.running_mean is missing'):
        check_fit('gn.pth', group.state_dict(), batch)
    check_fit('more.pth', {**group.state_dict(), '0.2.running_var': torch.ones(4)}, group)


def detector_weights(arch):
    return {f'module.backbone.{name}': tensor for name, tensor in Trunk(arch).state_dict().items()}


def test_load_from_must_bring_the_whole_backbone(tmp_path, tiny):
    arch = dict(blocks=(1, 1, 1, 1), growth_rates=(8, 8, 8, 8))
    torch.save(detector_weights(dict(arch, growth_rates=(8, 8, 8, 12))), tmp_path / 'other.pth')
    torch.save(Trunk(arch).state_dict(), tmp_path / 'backbone.pth')
    for name, advice in (
        ('other.pth', "another model's"),
        ('backbone.pth', "a backbone alone: .* the backbone's init_cfg"),
    ):
        options = {'load_from': str(tmp_path / name)}
        with pytest.raises(CheckpointError, match=f'{name}: does not fit HCGNet.*{advice}'):
            train(tiny / 'tiny.py', tmp_path / 'run', tiny / 'shapes', cfg_options=options)
    assert not (tmp_path / 'run').exists()


def test_load_from_takes_safetensors(tmp_path, tiny):
    options = {'load_from': str(tmp_path / 'w.safetensors'), 'train_cfg.max_epochs': 0}
    cfg = Config.fromfile(tiny / 'tiny.py')
    state = {name: tensor + 1 for name, tensor in build_detector(cfg).state_dict().items()}
    save_weights(state, tmp_path / 'w.safetensors')
    runner = train(cfg, tmp_path / 'run', tiny / 'shapes', cfg_options=options)
    loaded = runner.model.state_dict()
    assert loaded.keys() == state.keys() and all(torch.equal(loaded[name], state[name]) for name in state)


def test_weights_of_the_whole_detector_must_hold_the_backbone(tmp_path):
    cfg = Config.fromfile(MASK_B)
    cfg.model.backbone.init_cfg = None
    cfg.model.init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'd.pth'))
    state = {name.removeprefix('module.'): tensor for name, tensor in detector_weights('b').items()}
    torch.save(state, tmp_path / 'd.pth')
    pretrained.find_pretrained(cfg)
    torch.save(Trunk('b').state_dict(), tmp_path / 'd.pth')
    with pytest.raises(CheckpointError, match=r'd\.pth: does not fit HCGNet'):
        pretrained.find_pretrained(cfg)
    pretrained.drop_pretrained(cfg)
    assert cfg.model.init_cfg is None


def test_wrapped_detectors_and_other_kinds_of_data_pass():
    cfg = Config.fromfile(MASK_B)
    wrapped = Config(dict(model=dict(type='SoftTeacher', detector=cfg.model)))
    assert preflight.check_backbone(wrapped).__name__ == 'HCGNet'
    pretrained.drop_pretrained(wrapped)
    assert wrapped.model.detector.backbone.init_cfg is None


def test_weights_for_a_wrapped_detector_are_left_to_the_wrapper(tmp_path):
    """A semi-supervised one loads them under names of its own."""
    torch.save({'state_dict': {'teacher.x': torch.ones(1)}}, tmp_path / 'teacher.pth')
    cfg = Config.fromfile(MASK_B)
    cfg.load_from, cfg.work_dir = str(tmp_path / 'teacher.pth'), str(tmp_path)
    with pytest.raises(CheckpointError, match='does not fit HCGNet'):
        launch._choose_weights(cfg, HCGNet, False)
    wrapped = Config(
        dict(
            model=dict(type='SoftTeacher', detector=cfg.model), load_from=cfg.load_from, work_dir=cfg.work_dir
        )
    )
    content, _ = launch._choose_weights(wrapped, HCGNet, False)
    assert content['state_dict'].keys() == {'teacher.x'}


def test_data_root_moves_panoptic_masks_too(tmp_path):
    metric = dict(
        type='CocoPanopticMetric',
        ann_file='data/coco/annotations/panoptic_val2017.json',
        seg_prefix='data/coco/annotations/panoptic_val2017/',
    )
    dataset = dict(type='CocoPanopticDataset', data_root='data/coco/', ann_file='annotations/x.json')
    cfg = Config(dict(data_root='data/', val_dataloader=dict(dataset=dataset), val_evaluator=metric))
    move_data(cfg, str(tmp_path))
    assert cfg.val_evaluator.seg_prefix == str(tmp_path / 'annotations/panoptic_val2017')
    assert cfg.val_evaluator.ann_file == str(tmp_path / 'annotations/panoptic_val2017.json')


def test_missing_weights_name_both_ways_out(tmp_path, monkeypatch, tiny):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        train(MASK_B, data_root='/nowhere')
    assert str(tmp_path / WEIGHTS) in str(error.value)
    assert f'mmhcg convert_checkpoint HCGNet_B_best.pth.tar {WEIGHTS}' in str(error.value)
    assert '--no-pretrained' in str(error.value)
    assert not list(tmp_path.iterdir())  # nothing was started


def test_addresses_of_weights_are_left_to_mmengine():
    cfg = Config.fromfile(CONFIGS / BACKBONES[1])
    pretrained.find_pretrained(cfg)
    assert cfg.model.backbone.init_cfg.checkpoint == 'torchvision://resnet50'
    pretrained.drop_pretrained(cfg)  # nor is anything downloaded that a checkpoint brings
    assert cfg.model.backbone.init_cfg is None


def test_an_init_cfg_without_a_type_is_left_to_the_backbone_whose_it_is():
    cfg = get_config('mmdet::pvt/retinanet_pvtv2-b0_fpn_1x_coco.py')
    before = dict(cfg.model.backbone.init_cfg)
    pretrained.find_pretrained(cfg)
    assert cfg.model.backbone.init_cfg == before and 'type' not in before


def test_a_checkpoint_stands_in_for_pretrained_weights_and_freezing_stays():
    cfg = Config.fromfile(MASK_B)
    pretrained.drop_pretrained(cfg)
    assert cfg.model.backbone.init_cfg is None
    assert (cfg.model.backbone.frozen_stages, cfg.model.backbone.norm_eval) == (1, True)


def test_wrong_data_root_names_every_file_it_looked_for(tiny):
    cfg = Config.fromfile(tiny / 'tiny.py')
    before = cfg.to_dict()
    with pytest.raises(UserError) as error:
        train(cfg, data_root=tiny / 'nowhere', no_pretrained=True)
    assert cfg.to_dict() == before  # the caller's config is not what the run changes
    for where in ('train_dataloader', 'val_dataloader', 'val_evaluator'):
        split = 'train2017' if where.startswith('train') else 'val2017'
        assert f'{where}: {tiny}/nowhere/annotations/instances_{split}.json' in str(error.value)
    assert '--data-root' in str(error.value)


def write(folder: Path, name: str, content: str) -> str:
    (folder / name).write_text(content)
    return str(folder / name)


BAD_CONFIGS = {
    'a = (': 'cannot read the config',
    'a = 1': 'has no `model`',
    "model = dict(type='MaskRCNN')": 'has no `model.backbone`',
    "model = dict(backbone=dict(type='mmhcg.HCGNett'))": "'mmhcg.HCGNett' is not registered",
    "model = dict(backbone=dict(type='mmhcg.HCGNet'))": 'has no `train_dataloader`',
}


@pytest.mark.parametrize('content', BAD_CONFIGS)
def test_bad_configs_are_refused(tmp_path, capsys, content):
    with pytest.raises(SystemExit) as stop:
        load_tool('train').main([write(tmp_path, 'bad.py', content)])
    assert stop.value.code == 2
    assert re.search(f'^error: .*{re.escape(BAD_CONFIGS[content])}', capsys.readouterr().err)


def test_bad_checkpoints_are_refused(tiny, tmp_path, capsys):
    config, data = str(tiny / 'tiny.py'), ['--data-root', str(tiny / 'shapes')]
    weights = tmp_path / 'weights.pth'
    torch.save({'state_dict': {}}, weights)
    for tool, argv, expected in (
        ('test', [config, str(tmp_path / 'none.pth')], 'no checkpoint at'),
        ('test', [config, write(tmp_path, 'noise.pth', 'noise')], 'noise.pth'),
        ('train', [config, '--resume', '--work-dir', str(tmp_path / 'empty')], 'nothing to resume'),
        ('train', [config, '--resume', str(weights)], 'it has no meta, optimizer, message_hub'),
    ):
        with pytest.raises(SystemExit) as stop:
            load_tool(tool).main([*argv, *data])
        assert stop.value.code == 2
        assert expected in capsys.readouterr().err
    assert not (tmp_path / 'empty').exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU to use mixed precision on')
def test_amp_without_a_gpu_is_refused(tiny):
    with pytest.raises(UserError, match='needs a GPU'):
        train(tiny / 'tiny.py', data_root=tiny / 'shapes', no_pretrained=True, amp=True)


def noisy_detections(ground_truth: COCO, rng: np.random.Generator) -> list[dict]:
    """For every object a few boxes near it, some under a wrong class, in the form that detectors give."""
    samples = []
    for image in ground_truth.imgs.values():
        boxes, labels, masks = [], [], []
        for annotation in ground_truth.imgToAnns[image['id']]:
            for _ in range(4):
                x, y, w, h = np.asarray(annotation['bbox']) + rng.normal(0, 2, 4)
                boxes.append([x, y, x + max(w, 1), y + max(h, 1)])
                labels.append(annotation['category_id'] - 1 if rng.random() < 0.8 else int(rng.integers(3)))
                shift = tuple(rng.integers(-2, 3, 2))
                masks.append(np.roll(ground_truth.annToMask(annotation), shift, (0, 1)).astype(bool))
        shape = (image['height'], image['width'])
        predicted = dict(
            bboxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
            labels=torch.tensor(labels, dtype=torch.long),
            scores=torch.from_numpy(rng.random(len(labels)).astype(np.float32)),
            masks=torch.from_numpy(np.stack(masks) if masks else np.zeros((0, *shape), bool)),
        )
        samples.append(dict(img_id=image['id'], ori_shape=shape, pred_instances=predicted))
    return samples


def pycocotools_numbers(ground_truth: COCO, samples: list[dict], metric: str) -> np.ndarray:
    results = []
    for sample in samples:
        predicted = sample['pred_instances']
        for box, label, score, mask in zip(*(predicted[k] for k in ('bboxes', 'labels', 'scores', 'masks'))):
            x1, y1, x2, y2 = box.tolist()
            result = dict(image_id=sample['img_id'], category_id=int(label) + 1, score=float(score))
            rle = mask_api.encode(np.asfortranarray(mask.numpy().astype(np.uint8)))
            shape = dict(bbox=[x1, y1, x2 - x1, y2 - y1]) if metric == 'bbox' else dict(segmentation=rle)
            results.append({**result, **shape})
    scores = COCOeval(ground_truth, ground_truth.loadRes(results), metric)
    scores.evaluate()
    scores.accumulate()
    scores.summarize()
    return scores.stats


def test_coco_twelve_gives_the_numbers_of_pycocotools(tmp_path):
    from mmhcg.runs.coco_metric import CocoTwelve

    make_shapes(tmp_path / 'set', images=1, seed=1, val_images=12, size=192)
    path = str(tmp_path / 'set/annotations/instances_val2017.json')
    ground_truth = COCO(path)
    assert [category['name'] for category in ground_truth.cats.values()] == list(CLASSES)
    samples = noisy_detections(ground_truth, np.random.default_rng(0))
    metric = CocoTwelve(ann_file=path, metric=['bbox', 'segm'])
    metric.dataset_meta = dict(classes=CLASSES)
    metric.process({}, samples)
    scores = metric.evaluate(len(samples))
    names = ['mAP', 'mAP_50', 'mAP_75', 'mAP_s', 'mAP_m', 'mAP_l']
    names += ['AR@1', 'AR@10', 'AR@100', 'AR_s@100', 'AR_m@100', 'AR_l@100']
    for kind in ('bbox', 'segm'):
        expected = pycocotools_numbers(ground_truth, samples, kind)
        assert len({round(number, 3) for number in expected}) > 8  # else a mix-up could go unseen
        assert [scores[f'coco/{kind}_{name}'] for name in names] == [round(number, 3) for number in expected]


@pytest.mark.parametrize(
    ('metric', 'kind'),
    [
        (dict(type='CocoMetric'), 'mmhcg.CocoTwelve'),
        (dict(type='mmdet.CocoMetric'), 'mmhcg.CocoTwelve'),
        (dict(type='CocoMetric', metric='bbox'), 'mmhcg.CocoTwelve'),
        (dict(type='CocoMetric', metric=['bbox', 'segm']), 'mmhcg.CocoTwelve'),
        (dict(type='CocoMetric', metric='proposal'), 'CocoMetric'),
        (dict(type='CocoMetric', proposal_nums=(1, 10, 100)), 'CocoMetric'),
        (dict(type='CocoMetric', metric_items=['mAP']), 'CocoMetric'),
        (dict(type='DumpDetResults'), 'DumpDetResults'),
    ],
)
def test_twelve_numbers_replace_those_of_boxes_and_masks_that_nobody_chose(metric, kind):
    metrics = [ConfigDict(metric)]
    use_twelve_numbers(metrics)
    assert metrics[0].type == kind


@pytest.mark.slow
def test_what_a_run_puts_into_its_config_is_found_when_that_is_used_again():
    """By a process that has imported nothing of it."""
    code = (
        'import mmhcg; from mmdet.registry import DATA_SAMPLERS, METRICS; '
        "print(METRICS.get('mmhcg.CocoTwelve'), DATA_SAMPLERS.get('mmhcg.FullBatchSampler'))"
    )
    found = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    classes = 'mmhcg.runs.coco_metric.CocoTwelve', 'mmhcg.runs.batches.FullBatchSampler'
    assert found.stdout.splitlines()[-1:] == [' '.join(f"<class '{name}'>" for name in classes)], found.stderr


def test_coco_twelve_scores_a_detector_that_finds_nothing(tmp_path):
    from mmhcg.runs.coco_metric import CocoTwelve

    make_shapes(tmp_path / 'set', images=1, seed=1, val_images=2, size=64)
    path = str(tmp_path / 'set/annotations/instances_val2017.json')
    samples = noisy_detections(COCO(path), np.random.default_rng(0))
    for sample in samples:
        sample['pred_instances'] = {key: value[:0] for key, value in sample['pred_instances'].items()}
    metric = CocoTwelve(ann_file=path, metric=['bbox', 'segm'])
    metric.dataset_meta = dict(classes=CLASSES)
    metric.process({}, samples)
    scores = metric.evaluate(len(samples))
    assert len(scores) == 24
    assert scores['coco/bbox_mAP'] == scores['coco/segm_mAP'] == scores['coco/segm_AR@100'] == 0
