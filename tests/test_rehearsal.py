"""A training step and a prediction of detectors that each need something special."""

import pytest
import torch

pytest.importorskip('mmdet')

from mmengine.config import Config
from mmengine.logging import MessageHub
from torch import nn
from torchvision.ops import masks_to_boxes

from mmhcg.runs.config import load_config
from mmhcg.runs.pretrained import without_pretrained
from mmhcg.swap.rehearsal import build_untrained, rehearse, train_once

RETINANET = 'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py'
# What each needs beside images and boxes, and a loss that depends on it.
SPECIAL = {
    'fast_rcnn/fast-rcnn_r50_fpn_1x_coco.py': ('proposals', 'loss_bbox'),
    'condinst/condinst_r50_fpn_ms-poly-90k_coco_instance.py': ('masks', 'loss_mask'),
    'rtmdet/rtmdet_tiny_8xb32-300e_coco.py': ('no masks', 'loss_bbox'),
    'queryinst/queryinst_r50_fpn_1x_coco.py': ('as many boxes as queries', 's0.loss_mask'),
    'pvt/retinanet_pvtv2-b0_fpn_1x_coco.py': ('no weights of its own', 'loss_bbox'),
    'panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco.py': ('stuff and things', 'loss_seg'),
    'scnet/scnet_r50_fpn_1x_coco.py': ('a semantic map', 'loss_semantic_seg'),
    'qdtrack/qdtrack_faster-rcnn_r50_fpn_4e_base.py': ('videos', 'loss_track'),
    'soft_teacher/soft-teacher_faster-rcnn_r50-caffe_fpn_180k_semi-0.1-coco.py': ('the student', 'loss_bbox'),
    'sort/sort_faster-rcnn_r50_fpn_8xb2-4e_mot17train_test-mot17test.py': ('the detector', 'loss_bbox'),
    'ld/ld_r18-gflv1-r101_fpn_1x_coco.py': ("a teacher's config", 'loss_ld'),
    'tood/tood_r50_fpn_1x_coco.py': ('an epoch', 'loss_bbox'),
    'dino/dino-4scale_r50_8xb2-12e_coco.py': ('a position for each query', 'd0.loss_bbox'),
}


@pytest.fixture
def retinanet():
    return build_untrained(load_config(RETINANET))


@pytest.mark.slow
@pytest.mark.parametrize('name', SPECIAL)
def test_a_detector_gets_what_it_needs(name):
    rehearsal = rehearse(build_untrained(load_config(f'mmdet::{name}')))
    need, loss = SPECIAL[name]
    assert rehearsal.losses[loss] > 0, f'{need} gave no loss'
    assert rehearsal.without_gradient == ()
    assert (rehearsal.detections is None) == ('panoptic' in name)


def test_norms_need_no_other_process():
    cfg = load_config(RETINANET)
    cfg.model.backbone.update(norm_cfg=dict(type='MMSyncBN', requires_grad=True), norm_eval=False)
    assert rehearse(build_untrained(cfg)).without_gradient == ()


def test_a_detached_output_is_reported(retinanet):
    assert rehearse(retinanet).without_gradient == ()
    whole = retinanet.backbone.forward
    retinanet.backbone.forward = lambda images: (*whole(images)[:-1], whole(images)[-1].detach())
    expected = tuple(f'layer4.{name}' for name, _ in retinanet.backbone.layer4.named_parameters())
    assert rehearse(retinanet).without_gradient == expected


def test_an_unused_part_is_reported_unless_frozen(retinanet):
    retinanet.backbone.unused = nn.Linear(1, 1)
    retinanet.backbone.unused.bias.requires_grad_(False)
    assert rehearse(retinanet).without_gradient == ('unused.weight',)


def test_a_loss_that_is_not_finite_raises(retinanet):
    nn.init.constant_(retinanet.bbox_head.retina_reg.weight, float('nan'))
    with pytest.raises(FloatingPointError, match='loss_bbox'):
        rehearse(retinanet)


def test_nothing_but_running_averages_changes(retinanet):
    before = {name: tensor.clone() for name, tensor in retinanet.named_parameters()}
    torch.manual_seed(5)
    rehearse(retinanet)
    after = torch.rand(3)
    torch.manual_seed(5)
    assert after.equal(torch.rand(3))
    assert all(tensor.equal(before[name]) for name, tensor in retinanet.named_parameters())


def test_heads_ask_the_rehearsal_how_far_it_is_not_a_run_made_since(monkeypatch):
    monkeypatch.setattr(MessageHub, '_instance_dict', {})
    rehearse(build_untrained(load_config(RETINANET)))
    run = MessageHub.get_instance('a run that has not begun')
    tood = build_untrained(load_config('mmdet::tood/tood_r50_fpn_1x_coco.py'))
    assert rehearse(tood).losses['loss_bbox'] > 0
    assert MessageHub.get_current_instance() is run
    assert dict(run.runtime_info) == {}


def test_the_same_model_gives_the_same_losses(retinanet):
    losses = rehearse(retinanet).losses
    torch.manual_seed(5)
    assert rehearse(retinanet).losses == losses


def test_no_weights_are_fetched():
    cfg = load_config('mmdet::ld/ld_r18-gflv1-r101_fpn_1x_coco.py')
    assert cfg.model.backbone.init_cfg.type == 'Pretrained'
    bare = without_pretrained(cfg)
    assert bare.model.backbone.init_cfg is None
    assert bare.model.teacher_ckpt is None
    assert bare.model.teacher_config.model.backbone.depth == 101
    assert bare.model.teacher_config.model.backbone.init_cfg is None
    assert cfg.model.teacher_ckpt.startswith('http'), 'the config itself has been changed'


def test_other_initialisation_stays():
    cfg = load_config(RETINANET)
    normal = dict(type='Normal', layer='Conv2d', std=0.01)
    cfg.model.neck.init_cfg = [normal, dict(type='Pretrained', checkpoint='no such file')]
    cfg.model.bbox_head.init_cfg = normal
    bare = without_pretrained(cfg)
    assert bare.model.neck.init_cfg == [normal]
    assert bare.model.bbox_head.init_cfg == normal


def test_a_config_without_its_weights_is_a_config_still():
    cfg = Config(dict(model=dict(type='Any', pretrained='x', neck=dict(init_cfg=None)), load_from='x'))
    bare = without_pretrained(cfg)
    assert bare.to_dict() == dict(
        model=dict(type='Any', pretrained=None, neck=dict(init_cfg=None)), load_from=None
    )
    assert cfg.load_from == 'x'


def test_boxes_are_few_and_end_where_the_image_does():
    cfg = load_config(RETINANET)
    cfg.model.bbox_head.bbox_coder = dict(type='DeltaXYWHBBoxCoder', clip_border=False)
    head = build_untrained(cfg).bbox_head
    assert head.bbox_coder.clip_border
    assert head.test_cfg.max_per_img == 20


def given(name, shape, images):
    """What a detector of MMDetection is given to learn from: images and what is true of each."""
    model = build_untrained(load_config(f'mmdet::{name}'))
    seen = []

    def loss(inputs, samples):
        seen.append((inputs, samples))
        return dict(loss=torch.ones((), requires_grad=True))

    model.loss = loss
    train_once(model, shape, images)
    return seen[0]


@pytest.mark.parametrize(
    ('name', 'classes', 'stuff', 'masks', 'proposals'),
    [
        ('condinst/condinst_r50_fpn_ms-poly-90k_coco_instance.py', 80, None, True, False),
        ('panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco.py', 80, (80, 132), True, False),
        ('htc/htc_r50_fpn_1x_coco.py', 80, (0, 182), True, False),
        ('maskformer/maskformer_r50_ms-16xb1-75e_coco.py', 80, (80, 132), True, False),
        ('fast_rcnn/fast-rcnn_r50_fpn_1x_coco.py', 80, None, False, True),
        ('rpn/rpn_r50_fpn_1x_coco.py', 1, None, False, False),
    ],
)
def test_all_that_is_told_of_an_image_agrees(name, classes, stuff, masks, proposals):
    height, width = shape = (96, 128)
    inputs, samples = given(name, shape, images=3)
    assert inputs.shape == (3, 3, *shape)
    assert inputs.std() > 0.5
    assert not inputs[0].equal(inputs[1])
    assert len(samples) == 3
    for sample in samples:
        for size in (sample.img_shape, sample.ori_shape, sample.pad_shape, sample.batch_input_shape):
            assert tuple(size) == shape
        assert sample.border == (0, height, 0, width)
        assert sample.scale_factor == (1, 1) and sample.flip is False
        truth = sample.gt_instances
        assert (truth.bboxes[:, :2] >= 0).all() and (truth.bboxes[:, 2:] > truth.bboxes[:, :2] + 8).all()
        assert (truth.bboxes[:, 2:] <= torch.tensor([width, height])).all()
        assert truth.bboxes[0].tolist() == [3, 5, 125, 91]
        assert ((truth.labels >= 0) & (truth.labels < classes)).all()
        assert classes == 1 or len(truth.labels.unique()) > 1
        assert truth.instances_ids.tolist() == list(range(len(truth.bboxes)))
        assert len(sample.ignored_instances) == 0 and sample.ignored_instances.labels.dtype == torch.long
        assert ('masks' in truth) == masks
        if masks:
            assert truth.masks.masks.dtype == 'uint8' and truth.masks.masks.max() == 1
            around = masks_to_boxes(torch.from_numpy(truth.masks.masks)) + torch.tensor([0, 0, 1, 1])
            assert around.equal(truth.bboxes)
        assert ('gt_sem_seg' in sample) == bool(stuff)
        if stuff:
            assert sample.gt_sem_seg.sem_seg.shape == (1, *shape)
            halves = sample.gt_sem_seg.sem_seg.split(width // 2, dim=2)
            assert [half.unique().tolist() for half in halves] == [[label] for label in stuff]
        assert ('proposals' in sample) == proposals
        if proposals:
            assert sample.proposals.bboxes.equal(truth.bboxes + 2)


@pytest.mark.parametrize(
    ('name', 'shape'),
    [
        ('ssd/ssd300_coco.py', (300, 300)),  # its anchors are made for this size
        ('dino/dino-4scale_r50_8xb2-12e_coco.py', (192, 360)),  # with a position for each of 900 queries
    ],
)
def test_images_are_of_the_size_that_a_model_insists_on(name, shape):
    assert given(name, (64, 120), images=1)[0].shape == (1, 3, *shape)


def test_a_video_is_a_key_frame_and_another():
    inputs, videos = given('qdtrack/qdtrack_faster-rcnn_r50_fpn_4e_base.py', (96, 128), images=3)
    assert inputs.shape == (3, 2, 3, 96, 128)
    assert len(videos) == 3
    for video in videos:
        assert (video.key_frames_inds, video.ref_frames_inds) == ([0], [1])
        assert [frame.frame_id for frame in video] == [0, 1]
        assert [frame.img_shape for frame in video] == [(96, 128)] * 2
