"""The scope `mmhcg` of MMEngine's registries, so that `type='mmhcg.HCGNet'` resolves in any config."""

from mmengine.registry import DATA_SAMPLERS as ROOT_DATA_SAMPLERS
from mmengine.registry import DATASETS as ROOT_DATASETS
from mmengine.registry import HOOKS as ROOT_HOOKS
from mmengine.registry import METRICS as ROOT_METRICS
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import Registry

MODELS = Registry('model', parent=ROOT_MODELS, scope='mmhcg', locations=['mmhcg.backbone'])
DATASETS = Registry('dataset', parent=ROOT_DATASETS, scope='mmhcg', locations=['mmhcg.data.cifar'])
DATA_SAMPLERS = Registry(
    'data sampler', parent=ROOT_DATA_SAMPLERS, scope='mmhcg', locations=['mmhcg.runs.batches']
)
METRICS = Registry('metric', parent=ROOT_METRICS, scope='mmhcg', locations=['mmhcg.runs.coco_metric'])
HOOKS = Registry(
    'hook',
    parent=ROOT_HOOKS,
    scope='mmhcg',
    locations=[
        'mmhcg.runs.channels_last',
        'mmhcg.runs.drop_block',
        'mmhcg.runs.finite',
        'mmhcg.runs.predictions',
        'mmhcg.runs.preemption',
        'mmhcg.runs.run_state',
    ],
)
