"""MMDetection 1's boxes and masks where a pipeline resizes nothing, and so notes no scale."""

import torch
from mmdet.models import MaskRCNN
from mmdet.structures import DetDataSample
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData

from mmhcg.legacy import LegacyFCNMaskHead, LegacyMaskRCNN


def test_boxes_of_an_image_of_its_own_size(monkeypatch):
    monkeypatch.setattr(MaskRCNN, 'predict', lambda self, inputs, samples, rescale: samples)
    sample = DetDataSample(pred_instances=InstanceData(bboxes=torch.tensor([[10.0, 20, 29, 39]])))
    LegacyMaskRCNN.__new__(LegacyMaskRCNN).predict(torch.zeros(1, 3, 64, 64), [sample], rescale=False)
    assert sample.pred_instances.bboxes.tolist() == [[10, 20, 30, 40]]


def test_masks_of_an_image_of_its_own_size():
    head = LegacyFCNMaskHead(num_convs=0, in_channels=4, conv_out_channels=4, num_classes=3)
    masks, without = (
        head._predict_by_feat_single(
            torch.full((1, 3, 28, 28), 40.0),
            torch.tensor([[1.0, 2, 4, 5]]),
            torch.tensor([0]),
            dict(ori_shape=(7, 8), **scale),
            ConfigDict(mask_thr_binary=0.5),
        )
        for scale in (dict(scale_factor=(1.0, 1.0)), {})
    )
    assert masks.sum() == 16 and torch.equal(masks, without)
