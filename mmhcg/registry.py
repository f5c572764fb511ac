"""The scope `mmhcg` of MMEngine's model registry, so that `type='mmhcg.HCGNet'` resolves in any config."""

from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import Registry

MODELS = Registry('model', parent=ROOT_MODELS, scope='mmhcg', locations=['mmhcg.backbone'])
