"""The converter on arbitrary tensors and arbitrary damage, on a variant small enough to try many."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from mmhcg.network.variants import VARIANTS, Variant
from mmhcg.stack import checkpoints
from mmhcg.weights import WeightsError, convert, convert_checkpoint, restore_checkpoint, save_weights
from mmhcg.weights.names import COUNTER, table, to_ours, to_theirs

SMALL = Variant((1, 1, 1, 1), (4, 4, 4, 4))
FINITE = st.floats(allow_nan=False, allow_infinity=False, width=32)
thorough = settings(max_examples=30, deadline=None)


@pytest.fixture(scope='module', autouse=True)
def small() -> Iterator[None]:
    """A variant of the tests' own, and the only one that the converter knows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(VARIANTS, 'small', SMALL)
        patch.setattr(convert, 'ARCHS', ('small',))
        yield


def shapes() -> dict[str, Tensor]:
    """Name in the authors' classification file -> a tensor of its shape and type there, on no device."""
    entries = table('classification', 'small', 1).items()
    return {theirs: to_theirs(ours, like) for ours, (theirs, like) in entries}


def authors_file(numbers: list[float], dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """All entries that the small variant's file would have, filled with these numbers, over and over."""
    content = {}
    for place, (name, like) in enumerate(shapes().items()):
        values = torch.tensor(numbers, dtype=dtype).roll(place).repeat(like.numel() // len(numbers) + 1)
        values = values[: like.numel()].reshape(like.shape)
        content[name] = values.abs() if name.endswith('running_var') else values
        if name.endswith(COUNTER):
            content[name] = torch.tensor(place)
    return content


def converted(content: dict[str, object], reverse: bool = False) -> dict[str, Tensor]:
    """What the converter makes of a file with this content, without the file, which would take most time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, 'load_checkpoint_file', lambda path: {'net': content})
        return (restore_checkpoint if reverse else convert_checkpoint)('file.pth')[0]


@thorough
@given(
    numbers=st.lists(FINITE, min_size=1, max_size=16),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    shuffle=st.randoms(use_true_random=False),
)
def test_there_and_back_is_the_identity(numbers, dtype, shuffle):
    content = authors_file(numbers, dtype)
    names = list(content)
    shuffle.shuffle(names)
    state = converted({f'module.{name}': content[name] for name in names})
    assert state.keys() == table('classification', 'small', 1).keys()
    back = converted(state, reverse=True)
    assert list(back) == list(content)  # in the authors' order
    for name, tensor in content.items():
        assert back[name].dtype == tensor.dtype and torch.equal(back[name], tensor)


@thorough
@given(classes=st.integers(1, 99), channels=st.integers(1, 5), seed=st.integers(0, 2**32))
@pytest.mark.parametrize('name', ['bbox_head.fc_cls.', 'bbox_head.fc_reg.', 'mask_head.conv_logits.'])
def test_heads_there_and_back_are_the_same(name, classes, channels, seed):
    rows = {'bbox_head.fc_cls.': classes + 1, 'bbox_head.fc_reg.': 4 * classes}.get(name, classes)
    tensor = torch.randn(rows, channels, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(to_ours(name, to_theirs(name, tensor)), tensor)


ODD = st.sampled_from(['weights', None, 1, [], torch.ones(1, dtype=torch.float16), torch.ones(1).to_sparse()])


@st.composite
def damages(draw: st.DrawFn) -> tuple[str, str, object]:
    """What is done, to which entry, and with what."""
    kind = draw(st.sampled_from(['drop', 'rename', 'reshape', 'replace', 'NaN']))
    name = draw(st.sampled_from([name for name in shapes() if kind != 'NaN' or not name.endswith(COUNTER)]))
    detail = {
        'rename': st.text(max_size=30),
        'reshape': st.lists(st.integers(0, 7), max_size=5),
        'replace': ODD,
        'NaN': st.sampled_from([float('nan'), float('inf'), float('-inf')]),
    }
    return kind, name, draw(detail.get(kind, st.none()))


def apply(damage: tuple[str, str, object], content: dict[str, object]) -> bool:
    """Damage the content; whether that is a fault: older files have no counters."""
    kind, name, detail = damage
    if kind == 'drop':
        return content.pop(name, None) is not None and not name.endswith(COUNTER)
    if kind == 'rename':
        assume(detail.removeprefix('module.') not in content)
        content[detail] = content.pop(name)
    elif kind == 'reshape':
        assume(tuple(detail) != shapes()[name].shape)
        content[name] = torch.zeros(detail, dtype=shapes()[name].dtype)
    elif kind == 'replace':
        content[name] = detail
    else:
        content[name] = torch.full(shapes()[name].shape, detail)
    return True


@settings(max_examples=100, deadline=None)
@given(damage=damages())
def test_any_damage_is_refused_with_the_entry(damage):
    content = authors_file([0.5, -2.0])
    if apply(damage, content):
        with pytest.raises(WeightsError) as error:
            converted(content)
        assert re.search(rf'{re.escape(damage[1])} |{re.escape(str(damage[2]))} is unknown', str(error.value))
    else:
        converted(content)


@thorough
@given(several=st.lists(damages(), min_size=2, max_size=9, unique_by=lambda damage: damage[1]))
def test_any_damages_are_refused(several):
    content = authors_file([0.5, -2.0])
    faults = [damage for damage in several if apply(damage, content)]
    if faults:
        with pytest.raises(WeightsError) as error:
            converted(content)
        assert any(
            name in str(error.value) or f'{new} is unkn' in str(error.value) for _, name, new in faults
        )


@settings(max_examples=10, deadline=None)
@given(numbers=st.lists(FINITE, min_size=1, max_size=4), suffix=st.sampled_from(['.pth', '.safetensors']))
def test_what_is_written_is_what_is_read(numbers, suffix):
    state = converted(authors_file(numbers))
    with TemporaryDirectory() as folder:
        save_weights(state, Path(folder, f'ours{suffix}'))
        back, _ = restore_checkpoint(Path(folder, f'ours{suffix}'))
    assert all(torch.equal(back[name], tensor) for name, tensor in authors_file(numbers).items())
