"""HCGNet in the other libraries of OpenMMLab, where they are installed, by MMEngine's root registry."""

import pytest
import torch
from mmengine.hub import get_config
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData

import mmhcg  # noqa: F401  registers HCGNet and provides mmcv's operators


def test_upernet_of_mmsegmentation_trains_and_predicts():
    pytest.importorskip('mmseg.models')
    from mmseg.registry import MODELS
    from mmseg.structures import SegDataSample

    model = get_config('mmseg::upernet/upernet_r50_4xb4-80k_ade20k-512x512.py').model
    model.pretrained = None
    model.backbone = dict(type='mmhcg.HCGNet', arch='b')
    model.decode_head.update(in_channels=[160, 368, 952, 1244], norm_cfg=dict(type='BN'))
    model.auxiliary_head.update(in_channels=952, norm_cfg=dict(type='BN'))
    model.data_preprocessor.size = (64, 96)
    init_default_scope('mmseg')
    segmentor = MODELS.build(model)
    samples = []
    for _ in range(2):
        size = dict.fromkeys(('img_shape', 'ori_shape', 'pad_shape'), (64, 96))
        samples.append(SegDataSample(metainfo=size))
        samples[-1].gt_sem_seg = PixelData(data=torch.randint(150, (1, 64, 96)))
    losses = segmentor(torch.rand(2, 3, 64, 96), samples, mode='loss')
    loss = sum(value for name, value in losses.items() if 'loss' in name)
    assert loss.isfinite()
    loss.backward()
    assert [name for name, p in segmentor.backbone.named_parameters() if p.grad is None] == []
    segmentor.eval()
    with torch.no_grad():
        (result,) = segmentor(torch.rand(1, 3, 64, 96), samples[:1], mode='predict')
    assert result.pred_sem_seg.data.shape == (1, 64, 96)


def test_image_classifier_of_mmpretrain_trains_and_predicts():
    pytest.importorskip('mmpretrain.models')
    from mmpretrain.registry import MODELS
    from mmpretrain.structures import DataSample

    init_default_scope('mmpretrain')
    classifier = MODELS.build(
        dict(
            type='ImageClassifier',
            backbone=dict(type='mmhcg.HCGNet', arch='b', out_indices=(3,)),
            neck=dict(type='GlobalAveragePooling'),
            head=dict(type='LinearClsHead', num_classes=10, in_channels=1244),
        )
    )
    images, samples = torch.rand(2, 3, 64, 64), [DataSample().set_gt_label(label) for label in (1, 2)]
    loss = classifier(images, samples, mode='loss')['loss']
    assert loss.isfinite()
    loss.backward()
    assert [name for name, p in classifier.backbone.named_parameters() if p.grad is None] == []
    classifier.eval()
    with torch.no_grad():
        results = classifier(images, samples, mode='predict')
    assert [result.pred_score.shape for result in results] == [(10,), (10,)]
