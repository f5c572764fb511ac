"""What detectors cost: the paper's numbers to the digit, and parts that can be added up by hand."""

import pytest
import torch
from oracle import Oracle, random_state
from tiny_run import CONFIGS, load_tool, write_config
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mmhcg.analysis.complexity import Part, count_complexity, format_table
from mmhcg.network import Trunk
from mmhcg.runs import UserError
from mmhcg.runs.config import build_detector, detector_of

# isort: split
from mmcv.ops import ModulatedDeformConv2dPack
from mmengine.config import Config
from mmengine.hub import get_config


@pytest.fixture(scope='module')
def counted():
    """The parts of both published detectors at 800x1280."""
    names = {'hcgnet': 'mask_rcnn_hcgnet_b_fpn_1x_coco.py', 'r50': 'mask_rcnn_r50_fpn_1x_coco.py'}
    return {key: count_complexity(build_detector(CONFIGS / name)) for key, name in names.items()}


def total(parts, field, prefix=''):
    return sum(getattr(part, field) for part in parts if part.name.startswith(prefix))


# Yang et al., AAAI 2020, the COCO table: trainable parameters in millions, multiply-adds in billions.
@pytest.mark.slow
@pytest.mark.parametrize(
    ('key', 'trainable', 'published'), [('hcgnet', '32.1', '230.4'), ('r50', '44.2', '275.6')]
)
def test_published_sizes_are_reached_to_the_digit(counted, key, trainable, published):
    assert f'{total(counted[key], "trainable") / 1e6:.1f}' == trainable
    assert f'{total(counted[key], "paper") / 1e9:.1f}' == published


@pytest.mark.slow
def test_exact_count_of_every_part(counted):
    """Backbone: the oracle's own convolutions at this size. Neck and heads: by hand, from their shapes."""
    parts = counted['hcgnet']
    positions = [200 * 320, 100 * 160, 50 * 80, 25 * 40, 13 * 20]  # of the pyramid, for 800x1280
    channels = (160, 368, 952, 1244)
    neck = sum(hw * 256 * (c + 9 * 256) for hw, c in zip(positions, channels))
    rpn = sum(positions) * 256 * (9 * 256 + 3 + 12)
    box = 1000 * (12544 * 1024 + 1024 * 1024 + 1024 * (81 + 320))
    mask = 100 * (4 * 14**2 * 9 * 256**2 + 14**2 * 4 * 256**2 + 28**2 * 256 * 80)
    assert total(parts, 'exact', 'neck') == neck
    assert total(parts, 'exact', 'rpn_head') == rpn
    assert total(parts, 'exact', 'roi_head.bbox_head') == box
    assert total(parts, 'exact', 'roi_head.mask_head') == mask

    state = {name: tensor.to('meta') for name, tensor in random_state('b').items()}
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        Oracle(state, 'b')(torch.zeros(1, 3, 800, 1280, device='meta', dtype=torch.float64))
    assert total(parts, 'exact', 'backbone') == counter.get_total_flops() // 2

    # What configs/README.md says of this detector, in billions and millions.
    rounded = [f'{number / 1e9:.2f}' for number in (total(parts, 'exact', 'backbone'), neck, rpn, mask)]
    assert rounded == ['40.82', '55.56', '50.62', '52.99']
    assert (f'{box / 1e9:.1f}', f'{total(parts, "exact") / 1e9:.1f}') == ('14.3', '214.3')
    assert f'{total(parts, "trainable") / 1e6:.2f}' == '32.09'
    assert f'{total(parts, "parameters") / 1e6:.2f}' == '32.20'


@pytest.mark.slow
def test_paper_counts_a_deconvolution_at_its_output(counted):
    more = total(counted['hcgnet'], 'paper', 'roi_head.mask_head') - total(
        counted['hcgnet'], 'exact', 'roi_head.mask_head'
    )
    deconvolution = 100 * 3 * 14**2 * 4 * 256**2
    assert f'{deconvolution / 1e9:.1f}' == '15.4'
    biases = 100 * (4 * 14**2 * 256 + 28**2 * (256 + 80))
    relus = 100 * (4 * 14**2 * 256 + 28**2 * 256)
    assert more == deconvolution + biases + relus


@pytest.mark.slow
def test_parameters_are_those_of_the_model(counted):
    model = build_detector(CONFIGS / 'mask_rcnn_hcgnet_b_fpn_1x_coco.py')
    parts = {part.name: part for part in counted['hcgnet']}
    assert total(counted['hcgnet'], 'parameters') == sum(p.numel() for p in model.parameters())
    assert parts['backbone.stages.3'].parameters == sum(
        p.numel() for p in model.backbone.stages[3].parameters()
    )
    assert parts['backbone.stem'].trainable == parts['backbone.stages.0'].trainable == 0
    assert list(parts)[:6] == ['backbone.stem', *(f'backbone.stages.{i}' for i in range(4)), 'neck']


class Toy(nn.Module):
    """A detector of nothing but layers that a hand can count."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, padding=1, groups=1), nn.BatchNorm2d(8), nn.ReLU()
        )
        self.neck = nn.ConvTranspose2d(8, 4, 2, stride=2, groups=2)
        self.twice = nn.ConvTranspose2d(4, 4, 2, stride=2, groups=2)
        self.deformable = ModulatedDeformConv2dPack(4, 4, 3, padding=1, groups=2)
        self.encoder = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
        self.head = nn.Linear(4, 5)
        self.scale = nn.Parameter(torch.ones(5))

    def forward(self, image, samples, mode):
        assert not self.training
        feat = self.neck.forward(nn.functional.max_pool2d(self.backbone(image), 2))
        self.deformable(self.twice(feat))
        self.encoder(src=feat.flatten(2).transpose(1, 2))
        return self.head(feat.mean((2, 3))) @ self.scale[:, None]


def test_a_toy_by_hand():
    toy = Toy()
    parts = {part.name: part for part in count_complexity(toy, (8, 12))}
    conv, bn, relu = (parts[f'backbone.{i}'] for i in range(3))
    assert (conv.exact, conv.activations, conv.parameters) == (24 * 27 * 8, 24 * 8, 27 * 8 + 8)
    assert (conv.paper, bn.paper, relu.paper) == (24 * 27 * 8 + 24 * 8, 2 * 24 * 8, 24 * 8)
    # Called as a function, so that its hooks, by which the paper's counter works, stay silent.
    assert (parts['neck'].exact, parts['neck'].paper) == (6 * 8 * 2 * 4, 0)
    # 4 x 6 positions: four times as many as it takes in, which is what the paper's counter does not see.
    assert (parts['twice'].exact, parts['twice'].paper) == (24 * 4 * 2 * 4, 96 * 4 * 2 * 4 + 96 * 4)
    assert parts['twice'].activations == 96 * 4
    offsets = 96 * 27 * 4 * 9  # 2 coordinates and a mask for each of 9 taps
    assert (parts['deformable'].exact, parts['deformable'].activations) == (offsets + 96 * 4 * 2 * 9, 96 * 31)
    projections, products, layers = 24 * 4 * 4 * 4, 2 * 24 * 24 * 4, 2 * 24 * 4 * 8
    assert parts['encoder'].exact == projections + products + layers
    assert (parts['head'].exact, parts['head'].paper, parts['head'].activations) == (20, 20, 5)
    assert (parts['other'].parameters, parts['other'].exact) == (5, 5)


def test_the_table_sums_up_what_it_lists():
    parts = [
        Part('backbone', 0, 0, 0, 0, 2_000_000),
        Part('backbone.stem', 1_500_000, 0, 2_000_000_000, 3_000_000_000, 0),
        Part('backbone.stages.0', 500_000, 500_000, 250_000_000, 0, 40_000_000),
        Part('neck', 1_000_000, 1_000_000, 0, 500_000_000, 100_000),
    ]
    lines = format_table(parts, 'paper').splitlines()
    assert len({len(line) for line in lines}) == 1
    assert [line[:11] for line in lines[1:5]] == ['backbone   ', '  itself   ', '  stem     ', '  stages.0 ']
    head, *rows = (' '.join(line.split()) for line in lines)
    assert head == 'part parameters trainable multiply-adds activations'
    assert rows == [
        'backbone 2.00 M 0.50 M 3.00 G 42.0 M',
        'itself 0.00 M 0.00 M 0.00 G 2.0 M',
        'stem 1.50 M 0.00 M 3.00 G 0.0 M',
        'stages.0 0.50 M 0.50 M 0.00 G 40.0 M',
        'neck 1.00 M 1.00 M 0.50 G 0.1 M',
        'total 3.00 M 1.50 M 3.50 G 42.1 M',
    ]
    assert format_table(parts).splitlines()[-1].split()[5:7] == ['2.25', 'G']


class Attention(nn.Module):
    """Calls `attend` on 24 positions of 4 channels."""

    def __init__(self, attend):
        super().__init__()
        self.attend, self.head = attend, nn.Linear(4, 5)

    def forward(self, image, samples, mode):
        return self.attend(image.new_zeros(1, 24, 4))


def fused(x):
    return nn.functional.scaled_dot_product_attention(x, x, x, is_causal=True)


def multi_head(need_weights):
    layer = nn.MultiheadAttention(4, 2, batch_first=True)
    attention = nn.ModuleList([layer])
    attention.forward = lambda x: layer(x, x, x, need_weights=need_weights)[0]
    return attention


def encoder_layer(**kwargs):
    return nn.TransformerEncoderLayer(4, 2, 8, batch_first=True, **kwargs)


PRODUCTS, PROJECTIONS, LAYERS = 2 * 24 * 24 * 4, 24 * 4 * 4 * 4, 2 * 24 * 4 * 8


@pytest.mark.parametrize(
    ('attend', 'expected'),
    [
        (fused, PRODUCTS),
        (multi_head(False), PROJECTIONS + PRODUCTS),
        (multi_head(True), PROJECTIONS + PRODUCTS),
        (encoder_layer(norm_first=True), PROJECTIONS + PRODUCTS + LAYERS),
        (nn.TransformerEncoder(encoder_layer(), 2), 2 * (PROJECTIONS + PRODUCTS + LAYERS)),
    ],
    ids=['function', 'layer', 'layer with weights', 'encoder layer', 'encoder'],
)
def test_attention_is_counted_however_pytorch_runs_it(attend, expected):
    assert total(count_complexity(Attention(attend), (8, 8)), 'exact') == expected


class Extras(nn.Module):
    """What of the paper's counter neither the toy nor the published detectors have."""

    def __init__(self):
        super().__init__()
        self.conv, self.plain = nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2, affine=False)
        self.larger = nn.Upsample(scale_factor=2)
        self.acts = nn.ModuleList([nn.PReLU(), nn.ELU(), nn.LeakyReLU(), nn.ReLU6()])
        self.pools = nn.ModuleList(
            [nn.MaxPool2d(2), nn.AvgPool2d(2), nn.AdaptiveMaxPool2d(1), nn.AdaptiveAvgPool2d(3)]
        )

    def forward(self, image, samples, mode):
        assert len(samples[0].proposals) == 1000  # where a detector does not say how many
        feat = self.larger(self.plain(self.conv(image)))
        return [layer(feat) for layer in (*self.acts, *self.pools)]


def test_layers_that_only_the_papers_counter_knows_by_hand():
    parts = {part.name: part for part in count_complexity(Extras(), (4, 6))}
    assert (parts['plain'].paper, parts['larger'].paper) == (24 * 2, 4 * 24 * 2)
    for i in range(4):  # what activations put out, and what pools take in
        assert (parts[f'acts.{i}'].paper, parts[f'pools.{i}'].paper) == (4 * 24 * 2, 4 * 24 * 2)


class TwoStage(nn.Module):
    """A detector whose mask head gets a RoI for each proposal, if there were `rois`."""

    def __init__(self, rois):
        super().__init__()
        self.test_cfg = dict(rpn=dict(max_per_img=rois))
        self.roi_head = nn.Module()
        self.roi_head.mask_head = nn.Conv2d(3, 5, 1)

    def forward(self, image, samples, mode):
        proposals = samples[0].proposals
        assert len(proposals) == self.test_cfg['rpn']['max_per_img']
        assert self.roi_head.mask_head(image.new_ones(len(proposals), 3, 2, 4)).shape[0] == len(proposals)


@pytest.mark.parametrize(('rois', 'masks'), [(7, 7), (150, 100)])
def test_proposals_are_those_of_the_test_and_masks_a_hundred_of_them(rois, masks):
    assert total(count_complexity(TwoStage(rois), (8, 8)), 'exact') == masks * 2 * 4 * 3 * 5


class OneModule(nn.Module):
    """The least HCGNet: the stem and one SMG module, with C = 8."""

    def __init__(self):
        super().__init__()
        self.backbone = Trunk(dict(blocks=(1,), growth_rates=(8,)))

    def forward(self, image, samples, mode):
        return self.backbone(image)


def test_hcgnet_is_counted_as_the_paper_writes_it_by_hand():
    """Norms by themselves, though they are folded into convolutions; depthwise kernels, though none runs."""
    large, small = 8 * 8, 4 * 4  # positions before and after the stem's pool, for 16x16
    stem = large * 9 * (3 * 32 + 32 * 32 + 32 * 64)
    squeeze = small * (64 * 32 + 8 * 9 * 8)  # 1x1, then 3x3 in four groups of eight
    kernels, projects = small * 2 * 8 * 9, small * 3 * 8
    update, forget = 16 * 8 + 2 * 8 * 8, 8 * 4 + 4 * 8
    exact = stem + squeeze + kernels + projects + update + forget
    norms = large * (32 + 32 + 64) + small * (64 + 32 + 8 + 8 + 72) + 8 + 4
    pooled = large * 64 + small * 3 * 8 + small * 64  # and the ReLU after the stem's pool
    parts = count_complexity(OneModule(), (16, 16))
    assert total(parts, 'exact') == exact
    assert total(parts, 'paper') == exact + small * 3 + 2 * norms + pooled  # biases of the projections
    assert total(parts, 'activations') == (
        large * (32 + 32 + 64) + small * (32 + 8 + 2 * 8 + 3) + 3 * 8 + 4 + 8
    )


def test_the_model_is_left_as_it_was():
    toy = Toy()
    toy.backbone[1].eval()
    toy.backbone[0].requires_grad_(False)
    before = [module.training for module in toy.modules()]
    count_complexity(toy, (8, 12))
    assert [p.requires_grad for p in toy.backbone.parameters()] == [False, False, True, True]
    toy.head = nn.Linear(7, 7)  # does not fit
    with pytest.raises(RuntimeError):
        count_complexity(toy, (8, 12))
    assert [module.training for module in toy.modules()] == before
    trained = {name for name, parameter in toy.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in toy.named_parameters()} - {'backbone.0.weight', 'backbone.0.bias'}
    assert 'forward' not in vars(toy.neck)
    assert not nn.modules.module._global_forward_hooks


def test_what_our_gates_compute_instead_is_what_the_page_says():
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        Trunk('b').eval()(torch.zeros(1, 3, 800, 1280))
    number = f'{counter.get_total_flops() / 2e9:.2f} G'
    assert number in (CONFIGS / 'README.md').read_text(encoding='utf-8')


def test_the_tool_prints_both_counts(tmp_path, capsys):
    tool = load_tool('get_flops')
    config = str(write_config(tmp_path))
    for count in ('exact', 'paper'):
        tool.main([config, '--shape', '64', '96', '--count', count])
        out = capsys.readouterr().out
        expected = count_complexity(build_detector(config), (64, 96))
        assert format_table(expected, count) in out
        assert f'{total(expected, count) / 1e9:.1f} G multiply-adds ({count})' in out
        assert (
            f'{total(expected, "trainable") / 1e6:.1f} M trainable parameters, for one image of 64x96' in out
        )
    for arguments, message in (
        (['absent.py'], 'no config file'),
        ([config, '--shape', '0', '64'], 'H and W must be positive'),
        (['mmdet::ssd/ssd300_coco.py', '--shape', '64', '64'], 'does not run'),
    ):
        with pytest.raises(SystemExit, match='2'):
            tool.main(arguments)
        assert message in capsys.readouterr().err


ODD = [
    'atss/atss_r50_fpn_1x_coco.py',  # calls the forward of its head
    'detr/detr_r50_8xb2-150e_coco.py',  # attention
    'cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py',  # three heads in a list
    'dcnv2/faster-rcnn_r50-mdconv-c3-c5_fpn_1x_coco.py',  # deformable convolution
    'fast_rcnn/fast-rcnn_r50_fpn_1x_coco.py',  # has no RPN
    'deformable_detr/deformable-detr_r50_16xb2-50e_coco.py',  # splits an embedding
    'cascade_rpn/cascade-rpn_faster-rcnn_r50-caffe_fpn_1x_coco.py',  # an RPN without forward
    'soft_teacher/soft-teacher_faster-rcnn_r50-caffe_fpn_180k_semi-0.1-coco.py',  # wraps a detector
]


@pytest.mark.slow
@pytest.mark.parametrize('name', ODD)
def test_other_detectors_are_counted(name):
    cfg = get_config(f'mmdet::{name}')
    if 'test_cfg' in detector_of(cfg) and 'rpn' in (detector_of(cfg).test_cfg or {}):
        detector_of(cfg).test_cfg.rpn.max_per_img = 50
    parts = count_complexity(build_detector(cfg), (128, 160))
    heads = [part for part in parts if 'head' in part.name or part.name == 'decoder']
    assert heads
    assert all(part.exact for part in heads)
    assert name.startswith('deformable') or 'other' not in {part.name for part in parts}


@pytest.mark.slow
def test_cascades_paste_no_more_masks_than_others():
    cfg = get_config('mmdet::cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py')
    masks = 100 * (4 * 14**2 * 9 * 256**2 + 14**2 * 4 * 256**2 + 28**2 * 256 * 80)
    cfg.model.test_cfg.rpn.max_per_img = 200
    parts = {part.name: part for part in count_complexity(build_detector(cfg), (64, 64))}
    assert [parts[f'roi_head.mask_head.{stage}'].exact for stage in range(3)] == [masks] * 3


def test_a_config_without_a_model_is_a_message():
    with pytest.raises(UserError, match='no `model`'):
        build_detector(Config(dict(train_cfg={})))
    with pytest.raises(UserError, match='cannot be built: KeyError'):
        build_detector(Config(dict(model=dict(type='Nothing'))))
