"""The authors' files: read by name, checked entry by entry, equal in features to the oracle."""

import hashlib
import subprocess
import sys

import pytest
import torch
from authors_files import backbone_entries, classification_file, classification_layout, detection_layout
from compare import equal, image_of, in_our_names, relative_error
from mmengine.config import Config
from mmengine.runner.checkpoint import load_checkpoint
from oracle import Oracle
from tiny_run import CONFIGS, REPO, load_tool

from mmhcg import HCGNet
from mmhcg.stack.checkpoints import CheckpointError
from mmhcg.weights import (
    Report,
    WeightsError,
    convert_checkpoint,
    restore_checkpoint,
    save_weights,
)

TOOL = REPO / 'tools' / 'convert_checkpoint.py'


@pytest.mark.parametrize(
    ('container', 'zipped', 'counters', 'suffix'),
    [
        ('net', True, True, '.safetensors'),
        ('state_dict', False, True, '.safetensors'),
        ('net', False, False, '.pth'),
        ('net', True, False, '.safetensors'),
        (None, True, True, '.pth'),
    ],
)
def test_converted_file_has_the_features_of_the_original(tmp_path, container, zipped, counters, suffix):
    entries = {n: t for n, t in classification_file().items() if counters or 'num_batches' not in n}
    content = {f'module.{name}': tensor for name, tensor in reversed(entries.items())}
    content = {container: content, 'epoch': 629, 'acc': 78.5} if container else content
    torch.save(content, tmp_path / 'HCGNet_B_best.pth.tar', _use_new_zipfile_serialization=zipped)
    state, report = convert_checkpoint(tmp_path / 'HCGNet_B_best.pth.tar')
    assert (report.kind, report.arch, report.expected) == ('classification', 'b', 1623)
    assert report.loaded == len(entries) - 2
    assert ('196 counters' in str(report)) == (not counters)
    assert set(report.left_over) == {'classifier.weight', 'classifier.bias'}

    file = tmp_path / 'new' / 'out' / f'hcgnet_b_in1k{suffix}'
    assert save_weights(state, file) == hashlib.sha256(file.read_bytes()).hexdigest()
    model = HCGNet('b')
    load_checkpoint(model, str(file), strict=True)
    assert_features_are_the_oracles(model, 'b')
    for name, counter in model.state_dict().items():
        if name.endswith('num_batches_tracked'):
            assert counter == (7 if counters else 0)


def assert_features_are_the_oracles(model, arch):
    image = image_of(1, (65, 97))
    with torch.no_grad():
        actual = model.eval().double()(image)
        oracle = Oracle({name: tensor.double() for name, tensor in backbone_entries(arch).items()}, arch)
        for a, e in zip(actual, oracle(image)):
            assert relative_error(a, e) <= 1e-10


def test_c_is_recognised_and_has_the_features_of_the_original(tmp_path):
    torch.save({'net': classification_file('c')}, tmp_path / 'HCGNet_C_best.pth.tar')
    state, report = convert_checkpoint(tmp_path / 'HCGNet_C_best.pth.tar')
    assert (report.arch, report.loaded, report.expected) == ('c', 2673, 2673)
    model = HCGNet('c')
    model.load_state_dict(state)
    assert_features_are_the_oracles(model, 'c')


def test_double_precision_stays(tmp_path):
    entries = {n: t.double() if t.is_floating_point() else t for n, t in classification_file().items()}
    torch.save({'net': entries}, tmp_path / 'a.pth.tar')
    state, _ = convert_checkpoint(tmp_path / 'a.pth.tar')
    assert {tensor.dtype for tensor in state.values()} == {torch.float64, torch.int64}
    assert equal(state, {n: t.to(state[n].dtype) for n, t in in_our_names(backbone_entries(), 'b').items()})


@pytest.mark.parametrize(
    ('loaded', 'counters', 'left_over', 'end'),
    [
        (8, '1 counter', '', 'left over: nothing'),
        (7, '2 counters', 'abc', 'left over: a, b, c'),
        (9, '', 'abcde', 'left over: a, b, c, and 2 more; SHA-256 f00'),
    ],
)
def test_a_report_says_what_was_there_and_what_was_not(loaded, counters, left_over, end):
    report = Report('detection', 'c', loaded, 9, tuple(left_over), 'f00' if 'SHA' in end else None)
    counters = counters and f'{counters} (num_batches_tracked) not in the file and set to 0, '
    assert str(report) == f'HCGNet-C, detection: {loaded} of 9 entries loaded, {counters}{end}'


@pytest.fixture(scope='module')
def detection(tmp_path_factory):
    """The authors' detection file, its entries, and what it converts to."""
    entries = detection_layout(backbone_entries())
    file = tmp_path_factory.mktemp('detection') / 'HCGNet_detection.pth'
    torch.save({'state_dict': entries, 'meta': {'mmdet_version': '1.0rc0', 'epoch': 12}}, file)
    return file, entries, *convert_checkpoint(file)


def test_detection_file_becomes_a_mask_rcnn(detection):
    from mmdet.registry import MODELS

    _, entries, state, report = detection
    assert (report.kind, report.arch, report.left_over) == ('detection', 'b', ())
    assert report.loaded == report.expected == len(entries)
    model = MODELS.build(Config.fromfile(CONFIGS / 'mask_rcnn_hcgnet_b_fpn_1x_coco.py').model)
    model.load_state_dict(state)
    assert_features_are_the_oracles(model.backbone, 'b')
    for name, tensor in entries.items():
        if name.startswith(('neck.', 'rpn_head.')):
            assert torch.equal(state[name], tensor)


def test_detection_heads_answer_as_mmdetection_1_did(detection):
    """Scores, boxes and masks of class k stand at k + 1 there, behind the background, and at k here."""
    _, entries, state, _ = detection
    feat = torch.randn(5, 1024, generator=torch.Generator().manual_seed(0))

    def linear(entries, name):
        return feat @ entries[f'{name}.weight'].T + entries[f'{name}.bias']

    scores, old_scores = (
        linear(state, 'roi_head.bbox_head.fc_cls').softmax(1),
        linear(entries, 'bbox_head.fc_cls').softmax(1),
    )
    boxes, old_boxes = linear(state, 'roi_head.bbox_head.fc_reg'), linear(entries, 'bbox_head.fc_reg')
    for k in (0, 1, 79):
        assert torch.allclose(scores[:, k], old_scores[:, k + 1], atol=1e-6)
        assert torch.equal(boxes[:, 4 * k : 4 * k + 4], old_boxes[:, 4 * k + 4 : 4 * k + 8])
        for entry in ('weight', 'bias'):
            mask = state[f'roi_head.mask_head.conv_logits.{entry}']
            assert torch.equal(mask[k], entries[f'mask_head.conv_logits.{entry}'][k + 1])
    assert torch.allclose(scores[:, 80], old_scores[:, 0], atol=1e-6)
    assert (boxes.shape, mask.shape) == ((5, 320), (80,))


def test_going_back_gives_the_authors_names(detection, tmp_path):
    torch.save({'net': classification_file()}, tmp_path / 'a.pth.tar')
    save_weights(convert_checkpoint(tmp_path / 'a.pth.tar')[0], tmp_path / 'ours.safetensors')
    theirs, report = restore_checkpoint(tmp_path / 'ours.safetensors')
    assert (report.kind, report.loaded, report.left_over) == ('classification', 1623, ())
    assert equal(theirs, classification_layout(backbone_entries()))

    _, entries, state, _ = detection
    torch.save({'state_dict': state, 'meta': {}}, tmp_path / 'epoch_12.pth')
    theirs, report = restore_checkpoint(tmp_path / 'epoch_12.pth')
    assert (report.kind, report.loaded, report.left_over) == ('detection', len(entries), ())
    for name, rows in (('bbox_head.fc_reg', 4), ('mask_head.conv_logits', 1)):
        for entry in ('weight', 'bias'):
            assert not theirs[f'{name}.{entry}'][:rows].any()
            theirs[f'{name}.{entry}'][:rows] = entries[f'{name}.{entry}'][:rows]
    assert equal(theirs, entries)

    backbone, report = restore_checkpoint(tmp_path / 'epoch_12.pth', 'classification')
    assert equal(backbone, classification_layout(backbone_entries()))
    assert set(report.left_over) == {name for name in state if not name.startswith('backbone.')}


def test_a_classifier_goes_back_as_its_backbone(tmp_path):
    torch.save({'net': classification_file()}, tmp_path / 'a.pth.tar')
    state, _ = convert_checkpoint(tmp_path / 'a.pth.tar', with_classifier=True)
    torch.save({'state_dict': state}, tmp_path / 'classifier.pth')
    for kind in ('auto', 'classification'):
        theirs, report = restore_checkpoint(tmp_path / 'classifier.pth', kind)
        assert (report.kind, report.left_over) == ('classification', ('head.fc.weight', 'head.fc.bias'))
        assert equal(theirs, classification_layout(backbone_entries()))
    with pytest.raises(WeightsError, match='the heads of a detector are missing'):
        restore_checkpoint(tmp_path / 'classifier.pth', 'detection')


def test_detectors_of_no_class_are_refused(tmp_path, detection):
    _, theirs, ours, _ = detection
    for convert, entries in ((convert_checkpoint, theirs), (restore_checkpoint, ours)):
        background = entries is theirs  # has a box and a mask there
        rows = {'fc_cls': 1, 'fc_reg': 4 * background, 'conv_logits': int(background)}
        none = dict(entries)
        for name in entries:
            if (layer := name.split('.')[-2]) in rows:
                none[name] = entries[name][: rows[layer]].clone()
        torch.save({'state_dict': none}, tmp_path / 'none.pth')
        with pytest.raises(
            WeightsError, match=r'fc_cls\.weight has shape \(1, 1024\) instead of \(2, 1024\)'
        ):
            convert(tmp_path / 'none.pth')


def test_detectors_of_other_classes_go_both_ways(tmp_path):
    entries = detection_layout(backbone_entries(), classes=3)
    torch.save({'state_dict': entries}, tmp_path / 'theirs.pth')
    state, _ = convert_checkpoint(tmp_path / 'theirs.pth')
    assert state['roi_head.bbox_head.fc_cls.bias'].shape == (4,)
    torch.save(state, tmp_path / 'ours.pth')
    theirs, _ = restore_checkpoint(tmp_path / 'ours.pth')
    assert {name: tensor.shape for name, tensor in theirs.items()} == {n: t.shape for n, t in entries.items()}
    for name, rows in (('bbox_head.fc_reg.bias', 4), ('mask_head.conv_logits.weight', 1)):
        assert torch.equal(theirs[name][rows:], entries[name][rows:])


def test_going_back_refuses_what_is_no_number(tmp_path, detection):
    state = dict(detection[2])
    state['roi_head.bbox_head.fc_reg.bias'] = torch.full((320,), float('nan'))
    torch.save(state, tmp_path / 'diverged.pth')
    with pytest.raises(WeightsError, match=r'diverged\.pth: entry roi_head\.\S+fc_reg\.bias holds NaN'):
        restore_checkpoint(tmp_path / 'diverged.pth')


def test_the_order_of_the_authors_modules_is_kept(tmp_path):
    """Their detection code loads a classification file by position."""
    torch.save({'net': classification_file()}, tmp_path / 'a.pth.tar')
    torch.save(convert_checkpoint(tmp_path / 'a.pth.tar')[0], tmp_path / 'ours.pth')
    names = list(restore_checkpoint(tmp_path / 'ours.pth')[0])
    smg = 'features.transition1.'
    layers = ('conv1_1x1.norm', 'conv1_1x1.conv', 'conv2_3x3', 'conv_3x3', 'conv_5x5', 'global_context3x3')
    layers += ('global_context5x5', 'fcall', 'bn_attention', 'fc3x3', 'fc5x5', 'global_forget_context')
    layers += ('bn_forget', 'fc1.', 'fc2.')
    parts = ('features.conv0', 'features.norm0', 'features.conv1', 'features.hybridblock1.SMG1.')
    parts += ('features.hybridblock1.SMG3.', *(smg + layer for layer in layers), 'features.hybridblock2.')
    parts += ('features.transition2.', 'features.hybridblock4.SMG8.', 'features.norm5.')
    places = [next(i for i, name in enumerate(names) if name.startswith(part)) for part in parts]
    assert places == sorted(places)


def test_init_cfg_loads_a_converted_file(tmp_path, detection):
    torch.save({'net': classification_file()}, tmp_path / 'a.pth.tar')
    save_weights(convert_checkpoint(tmp_path / 'a.pth.tar')[0], tmp_path / 'w.safetensors')
    save_weights(detection[2], tmp_path / 'detector.pth')
    expected = in_our_names(backbone_entries(), 'b')
    for init in (dict(checkpoint='w.safetensors'), dict(checkpoint='detector.pth', prefix='backbone.')):
        init = dict(init, type='Pretrained', checkpoint=str(tmp_path / init['checkpoint']))
        model = HCGNet('b', init_cfg=init)
        model.init_weights()
        assert equal(model.state_dict(), expected)


@pytest.mark.parametrize('file', ['a.pth.tar', 'half.pth', 'detector.pth'])
def test_init_cfg_is_strict(tmp_path, file, detection):
    state = in_our_names(backbone_entries(), 'b')
    torch.save({'net': classification_file()}, tmp_path / 'a.pth.tar')
    torch.save({name: state[name] for name in list(state)[:800]}, tmp_path / 'half.pth')
    torch.save(detection[2], tmp_path / 'detector.pth')
    model = HCGNet('b', init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / file)))
    advice = "prefix='backbone.'" if file == 'detector.pth' else 'convert_checkpoint'
    with pytest.raises(CheckpointError, match=rf'{file}: does not fit HCGNet.*{advice}'):
        model.init_weights()


def test_init_cfg_must_say_its_type():
    with pytest.raises(ValueError, match="has no type; a file wants type='Pretrained'"):
        HCGNet('b', init_cfg=dict(checkpoint='w.safetensors')).init_weights()


def rename(state, old, new):
    state[new] = state.pop(old)


def shift(state):
    """Every tensor under the name of the one before it."""
    state.update(zip(list(state), [*list(state.values())[1:], state['features.conv0.weight']]))


def swap(state, one, other):
    state[one], state[other] = state[other], state[one]


@pytest.mark.parametrize(
    ('damage', 'message'),
    [
        (shift, r'features\.conv0\.weight has shape \(32,\) instead of \(32, 3, 3, 3\)'),
        (
            lambda s: s.pop('features.transition2.fc1.bias'),
            r"'b':\n  features\.transition2\.fc1\.bias is miss",
        ),
        (
            lambda s: rename(s, 'features.conv0.weight', 'features.kernel0.weight'),
            r'features\.conv0\.weight is missing\n  features\.kernel0\.weight is unknown$',
        ),
        (lambda s: swap(s, 'features.conv0.weight', 'features.conv1.weight'), r'\(32, 32, 3, 3\) instead of'),
        (lambda s: s.update({'features.hybridblock2.SMG7.fc1.bias': torch.zeros(24)}), r'SMG7.* is unknown'),
        (
            lambda s: s.update({'features.conv1.weight': torch.zeros(32, 32, 3, 2)}),
            r'\(32, 32, 3, 2\) instead',
        ),
        (lambda s: s['features.norm5.weight'].fill_(float('nan')), r'features\.norm5\.weight holds NaN'),
        (lambda s: s['features.norm5.running_var'].neg_(), 'is negative'),
        (lambda s: s.update({'features.norm5.weight': torch.ones(1244).int()}), 'type torch.int32'),
        (lambda s: s.update({'features.norm5.weight': torch.ones(1244).half()}), 'type torch.float16'),
        (lambda s: s.update({'features.norm5.weight': torch.ones(1244).cfloat()}), 'type torch.complex64'),
        (lambda s: s.update({'features.norm5.weight': 'weights'}), r'is no tensor \(str\)'),
        (lambda s: s.update({'classifier.bias': torch.ones(1000).bool()}), 'type torch.bool'),
        (lambda s: s.update({'classifier.weight': torch.ones(1000, 1244).cfloat()}), 'type torch.complex64'),
        (lambda s: s.update({'classifier.bias': torch.ones(1000).long()}), r'no classifier .*torch\.int64'),
        (lambda s: s['classifier.bias'].fill_(float('nan')), r'entry classifier\.bias holds NaN'),
        (
            lambda s: s.update({'features.norm5.weight': torch.full((1244,), 1e300, dtype=torch.float64)}),
            r'norm5\.weight .*that float32 cannot hold',
        ),
        (
            lambda s: s.update({'features.norm5.weight': torch.ones(7)[::6][:0]}),
            r'norm5\.weight has shape \(0,\) instead of \(1244,\)',
        ),
        (
            lambda s: s.update({'classifier.bias': torch.zeros(100_001)}),
            'for 100001 classes, and 100000 are the most',
        ),
        (
            lambda s: s.update({'features.norm5.weight': torch.ones(1).expand(1244)}),
            'claims 1244 .* stores 1$',
        ),
        (
            lambda s: s.update({'classifier.weight': torch.ones(1).expand(10**9, 1000)}),
            'claims 1000000000000',
        ),
        (lambda s: s.update({'features.norm5.weight': torch.ones(1244).to_sparse()}), 'no plain tensor'),
        (lambda s: s.update({'features.norm5.weight': torch.ones(1244, device='meta')}), 'no plain tensor'),
        (lambda s: s['features.norm5.num_batches_tracked'].fill_(-5), 'is negative'),
        (
            lambda s: s.update({'features.norm5.weight': torch.arange(1244.0)[:1].expand(1244)}),
            'claims 1244 elements and stores 1$',
        ),
        (
            lambda s: s.update({'features.norm5.bias': s['features.norm5.weight']}),
            r'norm5\.bias claims elements that the file stores for another one',
        ),
        (
            lambda s: s.pop('classifier.bias'),
            r"no classifier of 1244 channels.*'classifier.weight': \(1000, 1244",
        ),
        (lambda s: s.update({'classifier.weight': torch.zeros(1000, 5)}), r'no classifier of 1244 channels'),
        (lambda s: s.update({'bn1.weight': torch.ones(1244)}), r'bn1\.weight is unknown'),
        (lambda s: s.update({'module.features.conv0.weight': torch.ones(1)}), 'with and without'),
        (lambda s: s.clear(), 'holds no state dict'),
    ],
)
def test_what_is_not_an_authors_file_is_refused_with_the_entry(tmp_path, damage, message):
    state = classification_file()
    damage(state)
    torch.save({'net': state} if state else {}, tmp_path / 'broken.pth')
    with pytest.raises(WeightsError, match=message) as caught:
        convert_checkpoint(tmp_path / 'broken.pth')
    assert 'broken.pth' in str(caught.value)


@pytest.mark.parametrize(
    ('damage', 'message'),
    [
        (lambda s: s.pop('mask_head.upsample.bias'), r'mask_head\.upsample\.bias is missing'),
        (lambda s: s.pop('bbox_head.fc_cls.bias'), r"'b':\n  bbox_head\.fc_cls\.bias is missing$"),
        (lambda s: s.update({'bbox_head.fc_reg.bias': torch.zeros(320)}), r'\(320,\) instead of \(324,\)'),
        (
            lambda s: rename(s, 'rpn_head.rpn_cls.bias', 'roi_head.rpn_cls.bias'),
            'rpn_head.rpn_cls.bias is miss',
        ),
        (
            lambda s: s.update({'bbox_head.fc_cls.bias': torch.zeros(0)}),
            r'fc_cls\.bias has shape \(0,\) inst',
        ),
        (lambda s: s['bbox_head.fc_cls.weight'].fill_(float('inf')), 'NaN or infinity'),
        (
            lambda s: s.update({'rpn_head.rpn_cls.bias': torch.zeros(3, dtype=torch.int64)}),
            r'rpn_cls\.bias is of type torch\.int64 instead of torch\.float32',
        ),
        (lambda s: s.update({'classifier.bias': torch.zeros(1000)}), r'classifier\.bias is unknown'),
    ],
)
def test_what_is_no_detection_file_is_refused_with_the_entry(tmp_path, damage, message, detection):
    entries = {name: tensor.clone() for name, tensor in detection[1].items()}
    damage(entries)
    torch.save({'state_dict': entries}, tmp_path / 'broken.pth')
    with pytest.raises(WeightsError, match=message):
        convert_checkpoint(tmp_path / 'broken.pth')


def test_kind_and_direction_must_be_those_of_the_file(tmp_path, detection):
    theirs, ours, detector = tmp_path / 'a.pth.tar', tmp_path / 'ours.pth', tmp_path / 'detector.pth'
    torch.save({'net': classification_file()}, theirs)
    torch.save(convert_checkpoint(theirs)[0], ours)
    torch.save({'state_dict': detection[2]}, detector)
    for convert, file, kind, message in (
        (convert_checkpoint, detection[0], 'classification', 'a detection file, not a classification file'),
        (convert_checkpoint, theirs, 'detection', 'a classification file, not .*: --kind classification$'),
        (convert_checkpoint, ours, 'auto', 'already our names; it needs no conversion$'),
        (convert_checkpoint, detector, 'auto', 'already our names; it needs no conversion$'),
        (restore_checkpoint, theirs, 'auto', "already the authors' names; it needs no conversion$"),
        (restore_checkpoint, detection[0], 'auto', "already the authors' names; it needs no conversion$"),
        (restore_checkpoint, ours, 'detection', 'a backbone alone, so the heads of a detector are missing$'),
    ):
        with pytest.raises(WeightsError, match=rf'{file.name}: .*{message}'):
            convert(file, kind)
    with pytest.raises(ValueError, match='kind must be one of auto, classification, detection'):
        convert_checkpoint(theirs, 'backbone')
    torch.save({'layer1.weight': torch.ones(1), 'fc.bias': torch.ones(1)}, tmp_path / 'resnet.pth')
    with pytest.raises(WeightsError, match=r'none of its 2 names is .* detection file: layer1\.weight,'):
        convert_checkpoint(tmp_path / 'resnet.pth', 'detection')


@pytest.mark.parametrize('convert', [convert_checkpoint, restore_checkpoint])
@pytest.mark.parametrize(
    ('name', 'kind'), [('layer1.weight', 'classification'), ('backbone.layer1.weight', 'detection')]
)
def test_other_networks_are_no_file_of_the_kind_that_they_look_like(tmp_path, convert, name, kind):
    torch.save({name: torch.ones(1)}, tmp_path / 'resnet.pth')
    with pytest.raises(
        WeightsError, match=rf'resnet\.pth: none of its 1 names is that of a {kind} file: {name}$'
    ):
        convert(tmp_path / 'resnet.pth')


@pytest.mark.parametrize(
    ('classes', 'message'),
    [
        (100_000, 'fits no variant'),
        (100_001, 'conv_logits.bias is for 100001 classes, and 100000 are the most'),
    ],
)
def test_a_claim_of_many_classes_is_refused_on_the_way_back_too(tmp_path, classes, message):
    entries = {'backbone.stem.0.conv.weight': 1, 'roi_head.mask_head.conv_logits.bias': classes}
    torch.save({name: torch.zeros(size) for name, size in entries.items()}, tmp_path / 'many.pth')
    with pytest.raises(WeightsError, match=rf'many\.pth.*{message}'):
        restore_checkpoint(tmp_path / 'many.pth')


@pytest.mark.parametrize(
    ('part', 'missing'),
    [('neck', 'neck.lateral_convs.0.conv.weight'), ('roi_head', 'roi_head.bbox_head.fc_cls.weight')],
)
def test_a_detector_without_a_part_does_not_pass_for_a_classifier(tmp_path, detection, part, missing):
    entries = {name: entry for name, entry in detection[2].items() if not name.startswith(f'{part}.')}
    torch.save(entries, tmp_path / 'part.pth')
    with pytest.raises(WeightsError, match=rf'part\.pth fits no variant .*\n  {missing} is missing'):
        restore_checkpoint(tmp_path / 'part.pth')


@pytest.mark.slow
def test_the_tool_writes_once_and_overwrites_nothing(tmp_path, capsys):
    torch.save({'net': classification_file()}, tmp_path / 'a.pth.tar')
    command = [str(tmp_path / 'a.pth.tar'), str(tmp_path / 'w.safetensors')]
    run = subprocess.run([sys.executable, TOOL, *command], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    content = (tmp_path / 'w.safetensors').read_bytes()
    assert '1623 of 1623 entries loaded, left over: classifier.weight, classifier.bias' in run.stdout
    assert run.stdout.count(f'SHA-256 {hashlib.sha256(content).hexdigest()}') == 1

    tool = load_tool('convert_checkpoint')
    refused = {
        'is there already': command,
        'no such file': [str(tmp_path / 'absent.pth'), str(tmp_path / 'other.safetensors')],
        'must end in .safetensors or .pth': [command[0], str(tmp_path / 'other.bin')],
        'this is a classification file': [command[0], str(tmp_path / 'other.pth'), '--kind', 'detection'],
    }
    for message, arguments in refused.items():
        with pytest.raises(SystemExit, match='2'):
            tool.main(arguments)
        assert message in capsys.readouterr().err
    assert (tmp_path / 'w.safetensors').read_bytes() == content

    tool.main([command[1], str(tmp_path / 'back.pth'), '--reverse'])
    back = torch.load(tmp_path / 'back.pth', weights_only=True)
    assert equal(back, classification_layout(backbone_entries()))
    assert sorted(path.name for path in tmp_path.iterdir()) == ['a.pth.tar', 'back.pth', 'w.safetensors']
