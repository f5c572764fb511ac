"""Attacks against their definition, and the tool from end to end on generated pictures."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torchvision
from mmdet.models import BaseDetector
from mmdet.registry import MODELS as DETECTORS
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner
from mmengine.structures import InstanceData
from tiny_run import REPO, load_tool, write_config, write_data

from mmhcg import runs
from mmhcg.runs import UserError

pytest.importorskip('foolbox', reason="needs foolbox: pip install -e '.[attack]'")
from mmhcg.analysis.attacks import AttackHook
from mmhcg.analysis.robustness import measure, prepare, read_rows

PAPER = REPO / 'benchmarks/results/paper_robustness.csv'
BACKBONE = "dict(type='mmhcg.HCGNet', arch=dict(blocks=(1, 1, 1, 1), growth_rates=(8, 8, 8, 8)))"
CLASSIFIER = """
default_scope = 'mmpretrain'
model = dict(
    type='ImageClassifier',
    data_preprocessor=dict(to_rgb=True, mean=[120.0, 110.0, 100.0], std=[60.0, 58.0, 57.0]),
    backbone={backbone},
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes={classes}, in_channels=23),
)
test_dataloader = dict(
    batch_size=8,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='CustomDataset',
        data_root={root!r},
        serialize_data=False,  # which collects garbage: longer than all the rest
        pipeline=[dict(type='LoadImageFromFile'), dict(type='PackInputs')],
    ),
)
test_evaluator = dict(type='Accuracy', topk=(1,))
test_cfg = dict()
work_dir = {root!r} + '_runs'
"""

BELIEVER = f"""
_base_ = 'tiny.py'
model = dict(
    _delete_=True,
    type='Believer',
    backbone={BACKBONE},
    data_preprocessor=dict(
        type='DetDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
    ),
)
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(96, 96)),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PackDetInputs'),
]
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_evaluator = dict(metric='bbox')
"""


@DETECTORS.register_module()
class Believer(BaseDetector):
    """A detector that finds what is annotated, unless the picture became brighter than it is on the disk."""

    def __init__(self, backbone: dict, data_preprocessor: dict) -> None:
        super().__init__(data_preprocessor)
        self.backbone = DETECTORS.build(backbone)

    def loss(self, inputs, samples):
        return dict(loss=inputs.mean())

    def predict(self, inputs, samples):
        for image, sample in zip(inputs, samples):
            height, width = sample.img_shape
            scale = inputs.new_tensor(sample.scale_factor).repeat(2)
            # Of the test pipeline's samples, whose boxes were not resized, these are the wrong ones.
            truth, boxes = sample.gt_instances, sample.gt_instances.bboxes / scale
            mean, std = self.data_preprocessor.mean, self.data_preprocessor.std
            picture = torch.from_numpy(cv2.imread(sample.img_path)).float()
            change = (image[:, :height, :width] * std + mean).mean() - picture.mean()
            count = len(boxes) if change < 1 else 0  # resizing changes it, too, but less
            sample.pred_instances = InstanceData(
                bboxes=boxes[:count], labels=truth.labels[:count], scores=torch.ones(count)
            )
        return samples

    def _forward(self, inputs, samples=None):
        raise NotImplementedError

    def extract_feat(self, inputs):
        raise NotImplementedError


@pytest.fixture(scope='module')
def detector(tmp_path_factory) -> Path:
    """A folder with shapes/, a tiny Mask R-CNN and a Believer: NAME.py with their weights, NAME.pth."""
    folder = tmp_path_factory.mktemp('detector')
    write_data(folder)
    text = write_config(folder).read_text() + f'work_dir = {str(folder / "runs")!r}\n'
    text += 'test_dataloader["dataset"]["serialize_data"] = False\n'
    (folder / 'tiny.py').write_text(text)
    (folder / 'believer.py').write_text(BELIEVER)
    for name in ('tiny', 'believer'):
        save_weights(folder / f'{name}.py')
    return folder


def save_weights(path: Path) -> torch.nn.Module:
    """Random weights of the config's model beside it; the backbone's norms have seen data."""
    torch.manual_seed(0)
    cfg = Config.fromfile(path)
    init_default_scope(cfg.default_scope)
    cfg.model.backbone.update(init_cfg=None, frozen_stages=-1, norm_eval=False)
    model = MODELS.build(cfg.model)
    with torch.no_grad():
        for _ in range(20):
            model.backbone.train()(torch.randn(4, 3, 64, 64))
    torch.save(dict(state_dict=model.state_dict()), path.with_suffix('.pth'))
    return model.eval()


@pytest.fixture(scope='module')
def classifier(tmp_path_factory) -> Path:
    """A folder with cls.py, 24 pictures of three textures and cls.pth, weights that tell them apart.

    And thousand.py with thousand.pth, a classifier of as many classes as ImageNet has.
    """
    pytest.importorskip(
        'mmpretrain.models', reason="needs mmpretrain: pip install -e '.[standalone,pretrain]'"
    )
    folder = tmp_path_factory.mktemp('classifier')
    rng = np.random.default_rng(0)
    for label, step in enumerate((1, 4, 16)):
        (folder / 'pictures' / str(label)).mkdir(parents=True)
        for number in range(8):
            small = rng.integers(60, 196, (64 // step, 64 // step, 3), np.uint8)
            picture = cv2.resize(small, (64, 64), interpolation=cv2.INTER_CUBIC)
            cv2.imwrite(str(folder / 'pictures' / str(label) / f'{number}.png'), picture)
    for name, classes in (('cls', 3), ('thousand', 1000)):
        text = CLASSIFIER.format(root=str(folder / 'pictures'), backbone=BACKBONE, classes=classes)
        (folder / f'{name}.py').write_text(text)
    save_weights(folder / 'thousand.py')
    model = save_weights(folder / 'cls.py')
    data = [model.data_preprocessor(batch) for batch in batches(folder / 'cls.py')]
    with torch.no_grad():
        feat = torch.cat([model.extract_feat(batch['inputs'])[-1] for batch in data])
        feat = torch.cat([feat, torch.ones(24, 1)], 1)
        labels = torch.cat([sample.gt_label for batch in data for sample in batch['data_samples']])
        solved = torch.linalg.lstsq(feat, torch.eye(3)[labels]).solution
        model.head.fc.weight.copy_(solved[:-1].T)
        model.head.fc.bias.copy_(solved[-1])
    torch.save(dict(state_dict=model.state_dict()), folder / 'cls.pth')
    return folder


def batches(config: Path, data_root: Path | None = None, batch_size: int = 8) -> list[dict]:
    """The test's batches, with the ground truth that losses need."""
    cfg = prepare(config, data_root)
    cfg.test_dataloader.batch_size = batch_size
    init_default_scope(cfg.default_scope)
    return list(Runner.build_dataloader(cfg.test_dataloader, seed=0))


def load(config: Path) -> torch.nn.Module:
    cfg = Config.fromfile(config)
    init_default_scope(cfg.default_scope)
    model = MODELS.build(cfg.model)
    model.load_state_dict(torch.load(config.with_suffix('.pth'))['state_dict'])
    return model.eval().requires_grad_(False)


def seen(model: torch.nn.Module, data: dict, attack: str, eps: float) -> torch.Tensor:
    """The normalised images on which the model predicts under attack; PGD in a quarter of its 40 steps."""
    images, attacking = [], AttackHook(attack, eps)
    if attack == 'pgd':
        assert attacking.attack.steps == 40
        attacking.attack.steps = 10
    hook = model.register_forward_pre_hook(
        lambda module, args, kwargs: images.append(args[0]) if kwargs['mode'] == 'predict' else None,
        with_kwargs=True,
    )
    with torch.no_grad():
        attacking._test_step(model, data)
    hook.remove()
    return images[0]


def test_fgsm_of_a_classifier_is_one_step_along_the_sign(classifier):
    model, (data, *_) = load(classifier / 'cls.py'), batches(classifier / 'cls.py')
    data['inputs'][0][:, :5] = 255  # where a step beyond white is cut off
    plain = model.data_preprocessor(data)
    image = plain['inputs'].requires_grad_()
    labels = torch.cat([sample.gt_label for sample in plain['data_samples']])
    torch.nn.functional.cross_entropy(model(image), labels).backward()
    mean, std = model.data_preprocessor.mean, model.data_preprocessor.std
    pixels = image.detach() * std + mean
    expected = (pixels + 0.01 * 255 * image.grad.sign()).clamp(0, 255)
    found = seen(model, data, 'fgsm', 0.01) * std + mean
    assert (found[0, :, :5] <= 255 + 1e-3).all()
    torch.testing.assert_close(found, expected, atol=1e-2, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize('attack', ['fgsm', 'pgd'])
def test_a_detector_is_attacked_by_its_loss_within_eps(detector, attack):
    data, _ = batches(detector / 'tiny.py', detector / 'shapes', batch_size=2)
    data['inputs'][1] = data['inputs'][1][:, :40, :52]  # the rest of it is padding
    model, eps = load(detector / 'tiny.py'), 0.02
    model.train()
    modes = [module.training for module in model.modules()]
    plain = model.data_preprocessor(data, training=True)
    found = seen(model, data, attack, eps)
    assert [module.training for module in model.modules()] == modes
    assert found[1, :, 40:].eq(0).all() and found[1, :, :, 52:].eq(0).all()
    std = model.data_preprocessor.std
    change = (found - plain['inputs']) * std / 255
    assert change.abs().max() <= eps + 1e-6
    assert (change[0].abs() > 0.9 * eps).float().mean() > (0.9 if attack == 'fgsm' else 0.1)

    def loss(image):
        torch.manual_seed(0)  # of the samplers
        return float(model.parse_losses(model(image, plain['data_samples'], mode='loss'))[0])

    model.eval()
    noise = plain['inputs'] + torch.randn_like(change).sign() * eps * 255 / std
    assert loss(found) > loss(noise) and loss(found) > 1.02 * loss(plain['inputs'])


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['classifier', 'detector'])
def test_without_strength_predictions_are_the_models_own(kind, request):
    folder = request.getfixturevalue(kind)
    config = folder / ('cls.py' if kind == 'classifier' else 'tiny.py')
    model, root = load(config), None if kind == 'classifier' else folder / 'shapes'
    with torch.no_grad():
        plain = model.test_step(batches(config, root)[0])
        under = AttackHook('fgsm', 0)._test_step(model, batches(config, root)[0])
    for one, other in zip(plain, under):
        if kind == 'classifier':
            assert torch.equal(one.pred_score, other.pred_score)
        else:
            assert len(one.pred_instances) > 0
            for key in ('bboxes', 'scores', 'masks'):
                assert torch.equal(one.pred_instances[key], other.pred_instances[key])


@pytest.mark.slow
def test_tool_scores_a_classifier_and_two_of_torchvisions(classifier, capsys, monkeypatch):
    """Of the latter, of one name, one always says 0 and the other 2."""
    monkeypatch.chdir(classifier)
    net = torchvision.models.get_model('squeezenet1_1', num_classes=3)
    names = ['cls']
    for label in (0, 2):
        with torch.no_grad():
            net.classifier[1].weight.zero_()
            net.classifier[1].bias.copy_(torch.eye(3)[label])
        torch.save(net.state_dict(), f'net{label}.pth')
        names.append(f'squeezenet1_1 (net{label}.pth)')
    argv = ['--against', 'squeezenet1_1', 'net0.pth', '--against', 'squeezenet1_1', 'net2.pth']
    argv += ['--plot', 'out/curves.png', '--eps', '0', '0.02', '--limit', '8']
    load_tool('robustness').main(['cls.py', 'cls.pth', *argv])
    rows = read_rows(classifier / 'out/curves.csv')
    assert [(row.network, row.eps) for row in rows] == [(n, e) for n in names for e in (0, 0.02)]
    assert {(row.metric, row.images, row.config) for row in rows} == {('top1', 8, 'cls')}
    assert rows[0].value > 0.9 and rows[1].value < 0.5 * rows[0].value
    assert [row.value for row in rows[2:]] == [3 / 8, 3 / 8, 2 / 8, 2 / 8]
    *_, head, own, zero, two = capsys.readouterr().out.splitlines()
    assert head.split() == ['top1', 'under', 'fgsm,', 'eps', '0', '0.02']  # the paper's are of other data
    assert own.split() == ['cls', *(f'{row.value:.3f}' for row in rows[:2])]
    assert [zero.split()[-3:], two.split()[-3:]] == [
        ['(net0.pth)', '0.375', '0.375'],
        ['(net2.pth)', '0.250', '0.250'],
    ]
    assert (classifier / 'out/curves.png').stat().st_size > 5000


@pytest.mark.slow
def test_tool_puts_the_papers_curves_beside_a_classifier_of_as_many_classes(classifier, capsys):
    argv = [str(classifier / 'thousand.py'), str(classifier / 'thousand.pth'), '--eps', '0', '--limit', '1']
    load_tool('robustness').main(argv)
    lines = [' '.join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[-6:-4] == [
        'thousand 0.000 - - - - -',
        'HCGNet-B (paper) 0.785 0.480 0.415 0.386 0.370 0.360',
    ]


@pytest.mark.slow
def test_no_strength_is_the_normal_evaluation(classifier, detector):
    (row,) = measure(prepare(classifier / 'cls.py'), classifier / 'cls.pth', [0])
    assert row.value == round(
        runs.test(classifier / 'cls.py', classifier / 'cls.pth')['accuracy/top1'] / 100, 4
    )
    boxes = {'test_evaluator.metric': 'bbox'}
    cfg = prepare(detector / 'tiny.py', detector / 'shapes', cfg_options=boxes)
    (row,) = measure(cfg, detector / 'tiny.pth', [0])
    found = runs.test(detector / 'tiny.py', detector / 'tiny.pth', detector / 'shapes', cfg_options=boxes)
    assert row.value == found['coco/bbox_mAP'] > 0


@pytest.mark.slow
def test_tool_scores_a_detector_on_the_images_of_the_limit(detector):
    argv = [detector / 'believer.py', detector / 'believer.pth', '--data-root', detector / 'shapes']
    argv += ['--eps', '0', '0.02', '--limit', '2', '--csv', detector / 'rows.csv']
    load_tool('robustness').main(list(map(str, argv)))
    rows = read_rows(detector / 'rows.csv')
    assert [(row.metric, row.images, row.value) for row in rows] == [('box AP', 2, 1), ('box AP', 2, 0)]
    assert rows[0].data == 'CocoDataset annotations/instances_val2017.json'


@pytest.mark.slow
def test_types_may_be_classes_as_in_pure_python_configs(classifier, detector):
    from mmdet.datasets import CocoDataset
    from mmdet.datasets.transforms import LoadAnnotations
    from mmdet.evaluation import CocoMetric
    from mmpretrain.evaluation import Accuracy
    from mmpretrain.models import ImageClassifier

    cfg = Config.fromfile(classifier / 'cls.py')
    cfg.model.type, cfg.test_evaluator.type = ImageClassifier, Accuracy
    pipeline = cfg.test_dataloader.dataset.pipeline
    assert prepare(cfg).test_dataloader.dataset.pipeline == pipeline  # labels are there anyway
    cfg = Config.fromfile(detector / 'believer.py')
    cfg.test_evaluator.type = CocoMetric
    for loader in (cfg.train_dataloader, cfg.test_dataloader):
        loader.dataset.type = CocoDataset
        for step in loader.dataset.pipeline:
            if step.type == 'LoadAnnotations':
                step.type = LoadAnnotations
    steps = prepare(cfg, detector / 'shapes').test_dataloader.dataset.pipeline
    assert [step.type for step in steps] == [
        'LoadImageFromFile',
        LoadAnnotations,
        'Resize',
        'PackDetInputs',
    ]


@pytest.mark.slow
def test_without_foolbox_it_is_named(classifier, monkeypatch):
    monkeypatch.setitem(sys.modules, 'foolbox', None)
    monkeypatch.delitem(sys.modules, 'mmhcg.analysis.attacks')
    with pytest.raises(UserError, match=r"foolbox cannot be imported .*: pip install '?foolbox"):
        prepare(classifier / 'cls.py')


def test_papers_rows():
    """Yang et al., AAAI 2020, arXiv 1908.09699: the table of accuracies under FGSM on ImageNet."""
    rows = read_rows(PAPER)
    assert len(rows) == 5 * 6 and {row.source for row in rows} == {'paper'}
    values = {(row.network, row.eps): row.value for row in rows}
    assert values['HCGNet-B', 0.001] == 0.480 and values['ResNet-50', 0.005] == 0.102
    assert all(values['HCGNet-B', eps] >= value for (_, eps), value in values.items())


@pytest.mark.slow
@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (['--eps', '2'], '--eps: changes of pixels that go from 0 to 1, not 2.0'),
        (['--eps', '0', '--limit', '0'], '--limit must be positive, not 0'),
        (['--eps', '0', '--against', 'resnet50', 'none.pth'], 'no checkpoint at .*none.pth'),
        (['--eps', '0', '--against', 'resnet7', 'tiny.pth'], 'resnet7 is neither a config file nor'),
        (['--eps', '0', '--against', 'resnet50', 'tiny.pth'], 'needs a config whose model.head'),
        (['--eps', '0', '--against', 'other/tiny.py', 'tiny.pth'], r'tiny \(tiny.pth\) is given twice, or'),
        (['--eps', '0', '--cfg-options', 'test_evaluator.metric=segm'], 'test_evaluator has no CocoMetric'),
    ],
)
def test_tool_says_what_is_missing(detector, options, message, capsys, monkeypatch):
    monkeypatch.chdir(detector)
    with pytest.raises(SystemExit) as error:
        load_tool('robustness').main(['tiny.py', 'tiny.pth', '--data-root', 'shapes', *options])
    assert error.value.code == 2
    assert re.search(f'^error: .*{message}', capsys.readouterr().err, re.M)
