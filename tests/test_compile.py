"""The network as one graph, for any size of image."""

import pytest
import torch
from compare import image_of, relative_error

from mmhcg.network import Trunk, deploy

pytestmark = pytest.mark.skipif(
    not hasattr(torch.compiler, 'is_compiling'), reason='PyTorch before 2.3 breaks the graph'
)

ARCH = dict(blocks=(1, 2, 1), growth_rates=(8, 8, 12))
SIZES = (
    (320, 480),
    (256, 320),
    (192, 608),
    (333, 500),
    (400, 608),
    (224, 224),
    (97, 131),
    (416, 416),
    (480, 640),
    (64, 96),
)


@pytest.mark.parametrize(
    'kind',
    [
        'eval',
        *(pytest.param(kind, marks=pytest.mark.slow) for kind in ('deploy', 'train', 'norm_eval', 'with_cp')),
    ],
)
def test_ten_sizes_make_one_graph_and_one_more(kind):
    trunk = Trunk(ARCH, with_cp=kind == 'with_cp').train(kind == 'train')
    network = deploy(trunk) if kind == 'deploy' else trunk
    learns = kind in ('train', 'norm_eval', 'with_cp')
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(network, fullgraph=True, backend=backend)  # fullgraph: a break is an error
    for size in SIZES[:3] if learns else SIZES:
        image = image_of(2, size, torch.float32)
        with torch.set_grad_enabled(learns):
            features = compiled(image)
        if learns:
            sum(feat.mean() for feat in features).backward()
            assert all(p.grad.isfinite().all() for p in trunk.parameters())
        else:
            for got, wanted in zip(features, network(image)):
                assert relative_error(got, wanted) < 1e-5
    assert len(graphs) == 2  # of the first size, and of all others
