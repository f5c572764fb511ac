"""What tools/train.py and tools/test.py refuse about annotations, images and classes before they start."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.registry import init_default_scope
from tiny_run import CLASSES, load_tool

from mmhcg.runs import UserError
from mmhcg.runs.data_checks import check_data
from mmhcg.runs.datasets import move_data

COCO_NAMES = ('person', 'bicycle', 'car')
VAL = 'annotations/instances_val2017.json'


@pytest.fixture
def data(tiny, tmp_path) -> Path:
    """A copy of the set, to spoil, with an empty file beside the images."""
    folder = Path(shutil.copytree(tiny / 'shapes', tmp_path / 'shapes'))
    (folder / 'val2017/empty.png').touch()
    return folder


@pytest.fixture
def cfg(tiny, data) -> Config:
    """The config on that copy, for the checks alone."""
    init_default_scope('mmdet')
    cfg = Config.fromfile(tiny / 'tiny.py')
    move_data(cfg, str(data))
    return cfg


def edit(data: Path, change, name: str = VAL) -> None:
    """Put the content of an annotation file, and its first annotation, through `change`."""
    content = json.loads((data / name).read_text())
    change(content, content['annotations'][0])
    (data / name).write_text(json.dumps(content))


def rename_class(content: dict, annotation: dict) -> None:
    content['categories'][1]['name'] = 'rectangel'


def add_class(content: dict, annotation: dict) -> None:
    content['categories'].append(dict(id=9, name='circle'))


# In the validation file, because what is wrong there would be seen only after an epoch
REFUSED = {
    'no bbox': (lambda c, a: a.pop('bbox'), r'annotation 100 of image 1: no bbox'),
    'polygon 1e9': (
        lambda c, a: a.update(segmentation=[[1e9, 1, 5, 5, 1, 9]]),
        'annotation 100 .*: polygon far outside',
    ),
    'no iscrowd': (lambda c, a: a.pop('iscrowd'), 'annotation 100 .*: no iscrowd'),
    'no annotations': (lambda c, a: c.pop('annotations'), 'no annotations'),
    'empty image': (
        lambda c, a: c['images'][0].update(file_name='empty.png'),
        r'val2017/empty\.png: image 1: empty image, 0 bytes \(crash when the image is reached\)',
    ),
    'missing image': (
        lambda c, a: c['images'][0].update(file_name='gone.png'),
        r'val2017/gone\.png: image 1: missing image[\s\S]*--data-root sets both',
    ),
}


def train(tiny: Path, data: Path, tmp_path: Path, *options: str) -> None:
    argv = [
        tiny / 'tiny.py',
        '--data-root',
        data,
        '--work-dir',
        tmp_path / 'run',
        '--no-pretrained',
        *options,
    ]
    load_tool('train').main(list(map(str, argv)))


@pytest.mark.parametrize('name', REFUSED)
def test_training_stops_before_it_starts(tiny, data, tmp_path, capsys, name):
    change, expected = REFUSED[name]
    edit(data, change)
    with pytest.raises(SystemExit) as stop:
        train(tiny, data, tmp_path)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert re.search(rf'^error: {data / VAL}, of val_dataloader and val_evaluator', error)
    assert re.search(expected, error)
    assert f'mmhcg check_data {data / VAL} {data}/val2017' in error
    assert not (tmp_path / 'run').exists()


@pytest.mark.slow
def test_training_warns_of_what_is_skipped(tiny, data, tmp_path):
    def spoil(content, annotation):
        annotation['bbox'][2] = 0
        content['annotations'][1]['image_id'] = 999
        content['annotations'][2]['image_id'] = 999

    edit(data, spoil, 'annotations/instances_train2017.json')
    options = ['train_cfg.max_epochs=1', 'train_cfg.val_interval=9', 'train_dataloader.dataset.indices=4']
    train(tiny, data, tmp_path, '--cfg-options', *options)
    (log,) = (tmp_path / 'run').glob('*/*.log')
    told = [line for line in log.read_text().splitlines() if 'looks wrong' in line or '(skipped' in line]
    assert 'WARNING' in told[0]
    assert told[0].endswith('skipped or looks wrong: 3 (1 x bbox without area, 2 x unknown image)')
    assert len(told) == 4 and re.search('annotation 101: unknown image, image_id=999', told[2])


def test_a_message_shows_some_of_every_kind(cfg, data):
    def spoil(content, annotation):
        annotation.pop('area')
        content['annotations'] = [dict(annotation, id=number) for number in range(1, count + 1)]
        content['annotations'][-1].pop('bbox')

    count = 12  # more than a message shows
    edit(data, spoil)
    with pytest.raises(UserError) as error:
        check_data(cfg, ('val',))
    lines = str(error.value).splitlines()
    assert f': {count + 1} ({count} x no area, 1 x no bbox)' in lines[0]
    assert len(lines) == 12 and ': no area' in lines[1] and ': no bbox' in lines[2]


def boxes_only(cfg: Config) -> None:
    for mode in ('train', 'val'):
        for step in cfg[f'{mode}_dataloader'].dataset.pipeline:
            step.pop('with_mask', None)
    cfg.val_evaluator.metric = 'bbox'


def test_masks_matter_only_where_they_are_read(cfg, data):
    for name in (VAL, 'annotations/instances_train2017.json'):
        edit(data, lambda c, a: a.pop('segmentation'), name)
    with pytest.raises(UserError, match=r'train_dataloader[^\n]*1 x no segmentation'):
        check_data(cfg, ('train', 'val'))
    boxes_only(cfg)
    assert check_data(cfg, ('train', 'val')) == []
    cfg.val_evaluator.metric = ['bbox', 'segm']
    with pytest.raises(UserError, match=r'val_evaluator[^\n]*1 x no segmentation'):
        check_data(cfg, ('train', 'val'))
    cfg.val_evaluator.metric = 'bbox'  # what one reader of a file needs counts, whoever else reads it
    cfg.val_dataloader.dataset.pipeline[2].with_mask = True
    with pytest.raises(UserError, match=r'val_dataloader and val_evaluator[^\n]*1 x no segmentation'):
        check_data(cfg, ('train', 'val'))


TRAIN = 'annotations/instances_train2017.json'


@pytest.mark.parametrize(
    'change',
    [
        lambda c, a: a.update(ignore=1),
        lambda c, a: a.update(area=0),
        lambda c, a: a.update(bbox=[900, 900, 5, 5]),
        lambda c, a: (add_class(c, a), a.update(category_id=9)),
        lambda c, a: a.update(category_id=77),
    ],
    ids=['ignored', 'without area', 'outside', 'of a class not asked for', 'of an unknown class'],
)
def test_what_training_passes_over_needs_no_mask(cfg, data, change):
    edit(data, lambda c, a: a.pop('segmentation'), TRAIN)
    with pytest.raises(UserError, match='no segmentation'):
        check_data(cfg, ('train',))
    edit(data, lambda c, a: a.update(area=float('nan')), TRAIN)  # which is not below zero
    with pytest.raises(UserError, match='no segmentation'):
        check_data(cfg, ('train',))
    edit(data, lambda c, a: a.update(area=9.0), TRAIN)
    edit(data, change, TRAIN)
    check_data(cfg, ('train',))


def test_images_that_a_run_does_not_read_may_be_missing(cfg, data):
    def lose(content, annotation):
        content['images'].append(dict(id=999, file_name='gone.png', width=64, height=64))

    edit(data, lose, TRAIN)
    assert check_data(cfg, ('train',)) == []  # without objects
    cfg.train_dataloader.dataset.filter_cfg = None
    with pytest.raises(UserError, match='missing image'):
        check_data(cfg, ('train',))
    cfg.train_dataloader.dataset.filter_cfg = dict(filter_empty_gt=True)
    cfg.train_dataloader.dataset.test_mode = True  # in which nothing is filtered
    with pytest.raises(UserError, match='missing image'):
        check_data(cfg, ('train',))
    cfg.train_dataloader.dataset.pipeline[0].ignore_empty = True  # another image takes its place
    assert check_data(cfg, ('train',)) == []
    cfg.train_dataloader.dataset.pipeline[0].ignore_empty = False
    cfg.train_dataloader.dataset.indices = 4
    assert check_data(cfg, ('train',)) == []
    cfg.train_dataloader.dataset.indices = None
    cfg.train_dataloader.dataset.pipeline[0].backend_args = dict(backend='petrel')
    assert check_data(cfg, ('train',)) == []


def test_images_of_a_set_whose_annotations_nobody_reads_must_be_there(cfg, data):
    """Whatever its filter for empty images."""
    edit(data, lambda c, a: c['images'][0].update(file_name='gone.png'), TRAIN)
    dataset = cfg.train_dataloader.dataset
    dataset.pipeline = [dict(type='LoadImageFromFile'), dict(type='PackDetInputs')]
    assert dataset.filter_cfg.filter_empty_gt
    with pytest.raises(UserError, match='missing image'):
        check_data(cfg, ('train',))


def test_a_file_without_objects_of_the_classes_cannot_be_scored(cfg, data):
    def other_class(content, annotation):
        add_class(content, annotation)
        for each in content['annotations']:
            each['category_id'] = 9

    edit(data, other_class)
    with pytest.raises(UserError, match=r'val_dataloader and val_evaluator[^\n]*1 x no objects'):
        check_data(cfg, ('val',))


def test_data_elsewhere_are_left_alone(cfg):
    for part in (cfg.val_dataloader.dataset, cfg.val_evaluator):
        part.update(ann_file='s3/val.json', backend_args=dict(backend='petrel'))
    assert check_data(cfg, ('val',)) == []
    cfg.val_evaluator.update(backend_args=None)
    with pytest.raises(UserError, match=r'val_evaluator: \S*s3/val\.json'):
        check_data(cfg, ('val',))


def test_files_named_by_cfg_options_are_those_files(tiny, data, tmp_path, capsys):
    """Whatever `--data-root` says of the others."""
    gone = f'val_evaluator.ann_file={tmp_path}/gone.json'
    with pytest.raises(SystemExit):
        train(tiny, data, tmp_path, '--cfg-options', gone)
    assert f'val_evaluator: {tmp_path}/gone.json' in capsys.readouterr().err


def test_what_only_scoring_needs_is_not_asked_of_training(cfg, data):
    edit(data, lambda c, a: a.pop('iscrowd'), 'annotations/instances_train2017.json')
    (note,) = check_data(cfg, ('train', 'val'))
    assert 'instances_train2017.json' in note and '1 x no iscrowd' in note


def test_images_without_annotations_can_be_predicted_but_not_scored(cfg, data):
    edit(data, lambda c, a: c.pop('annotations'))
    with pytest.raises(UserError, match=r'test_dataloader and test_evaluator.*no annotations'):
        check_data(cfg, ('test',))
    cfg.test_evaluator.update(format_only=True, outfile_prefix='x')
    assert check_data(cfg, ('test',)) == []


def test_unlabelled_images_need_no_annotations(cfg, data):
    labelled = cfg.train_dataloader.dataset
    steps = [dict(type='LoadImageFromFile'), dict(type='LoadEmptyAnnotations'), dict(type='PackDetInputs')]
    unlabelled = dict(labelled, ann_file='annotations/unlabelled.json', pipeline=steps, metainfo=None)
    shutil.copy(data / 'annotations/instances_train2017.json', data / unlabelled['ann_file'])
    edit(data, lambda c, a: c.pop('annotations'), unlabelled['ann_file'])
    cfg.train_dataloader.dataset = dict(type='ConcatDataset', datasets=[labelled, unlabelled])
    assert check_data(cfg, ('train',)) == []


def test_only_the_first_of_several_processes_reads(cfg, data, monkeypatch):
    (data / VAL).write_text('')
    cfg.launcher = 'pytorch'
    monkeypatch.setenv('RANK', '1')
    assert check_data(cfg, ('val',)) == []
    monkeypatch.setenv('RANK', '0')
    with pytest.raises(UserError, match='malformed JSON'):
        check_data(cfg, ('val',))


def test_other_formats_are_left_alone(cfg, data):
    cfg.val_dataloader.dataset.type = 'LVISV1Dataset'
    cfg.val_evaluator = dict(type='LVISMetric', ann_file=str(data / VAL))
    (data / VAL).write_text('')
    assert check_data(cfg, ('val',)) == []


def test_panoptic_data_has_other_annotations_and_things_alone_are_scored(cfg, data):
    from mmdet.datasets import CocoDataset, CocoPanopticDataset

    def become(cls):
        names = cls.METAINFO['classes']
        return lambda c, a: c.update(categories=[dict(id=i, name=n) for i, n in enumerate(names, start=1)])

    shutil.copy(data / VAL, data / 'panoptic.json')
    edit(data, become(CocoPanopticDataset), 'panoptic.json')
    edit(data, lambda c, a: c.update(annotations=[dict(image_id=1, segments_info=[])]), 'panoptic.json')
    edit(data, become(CocoDataset))
    cfg.val_dataloader.dataset.update(type='CocoPanopticDataset', ann_file='panoptic.json', metainfo=None)
    cfg.model.panoptic_head = dict(num_things_classes=80, num_stuff_classes=53)
    assert check_data(cfg, ('val',)) == []
    edit(data, lambda c, a: c['categories'].reverse(), 'panoptic.json')
    with pytest.raises(UserError, match='another order'):
        check_data(cfg, ('val',))


CONTRACT = {
    'typo': (rename_class, None, r"lacks 1 of them, e.g. 'rectangle'"),
    'order': (lambda c, a: c['categories'].reverse(), None, 'another order'),
    'custom JSON': (lambda c, a: None, COCO_NAMES, r"lacks 3 of them, e.g. 'person'"),
}


@pytest.mark.parametrize('name', CONTRACT)
def test_other_class_names_are_refused_side_by_side(tiny, data, tmp_path, capsys, name):
    change, classes, expected = CONTRACT[name]
    edit(data, change)
    options = ['--cfg-options', f'val_dataloader.dataset.metainfo.classes={classes}'] if classes else []
    with pytest.raises(SystemExit) as stop:
        train(tiny, data, tmp_path, *(option.replace("'", '').replace(' ', '') for option in options))
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert re.search(expected, error) and f'val_dataloader: {data / VAL}' in error
    names = [category['name'] for category in json.loads((data / VAL).read_text())['categories']]
    rows = [line.split() for line in error.splitlines() if line.startswith('  ')][1:]
    assert rows == [['config', '(3)', 'file', '(3)'], *map(list, zip(classes or CLASSES, names))]
    assert not (tmp_path / 'run').exists()


def test_long_lists_are_cut_to_where_they_differ(cfg, data):
    names = [f'class {place}' for place in range(80)]
    edit(data, lambda c, a: c.update(categories=[dict(id=i, name=n) for i, n in enumerate(names, start=1)]))
    names[40], names[41] = names[41], names[40]
    cfg.val_dataloader.dataset.metainfo = dict(classes=names)
    for head in (cfg.model.roi_head.bbox_head, cfg.model.roi_head.mask_head):
        head.num_classes = 80
    with pytest.raises(UserError) as error:
        check_data(cfg, ('val',))
    lines = [' '.join(line.split()) for line in str(error.value).splitlines()]
    assert lines[2:5] == ['config (80) file (80)', '... 38 more', 'class 38 class 38']
    assert lines[6] == 'class 41 class 40'
    assert lines[16] == '... 30 more'


def test_heads_of_another_number_of_classes_are_refused(tiny, data, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        train(tiny, data, tmp_path, '--cfg-options', 'model.roi_head.mask_head.num_classes=80')
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert 'error: train_dataloader has 3 classes, ellipse, rectangle, triangle, and' in error
    assert '  model.roi_head.mask_head.num_classes=80\n' in error and 'bbox_head' not in error
    assert not (tmp_path / 'run').exists()


def test_all_heads_that_count_categories_are_held_to_it(cfg):
    heads = cfg.model.roi_head
    heads.bbox_head = [dict(heads.bbox_head), dict(heads.bbox_head, num_classes=5)]
    heads.semantic_head = dict(type='FusedSemanticHead', num_classes=183)
    cfg.model.rpn_head.num_classes = 1
    cfg.model.panoptic_head = dict(num_things_classes=80, num_stuff_classes=53)
    with pytest.raises(UserError) as error:
        check_data(cfg, ('train',))
    assert re.findall(r'model\.(\S+)=', str(error.value)) == [
        'roi_head.bbox_head.1.num_classes',
        'panoptic_head.num_things_classes',
    ]
    cfg.model.language_model = dict(type='BertModel')
    assert check_data(cfg, ('train',)) == []


def test_more_categories_in_the_file_are_a_subset_in_training(cfg, data):
    edit(data, add_class)
    assert check_data(cfg, ('val',)) == []


def test_the_file_to_score_against_is_held_to_the_classes_too(cfg, data):
    shutil.copy(data / VAL, data / 'truth.json')
    edit(data, rename_class, 'truth.json')
    cfg.val_evaluator.ann_file = str(data / 'truth.json')
    with pytest.raises(UserError, match=r'lacks 1 of them[\s\S]*val_evaluator: \S*truth\.json'):
        check_data(cfg, ('val',))


def test_a_class_without_a_comma_is_refused(cfg):
    cfg.train_dataloader.dataset.metainfo = dict(classes='ellipse')  # what ('ellipse') is
    with pytest.raises(UserError, match=r"is a string, 'ellipse'.*classes=\('ellipse',\)"):
        check_data(cfg, ('train',))
