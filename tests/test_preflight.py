"""Which numbers a checkpoint may hold, before a run starts from it."""

from __future__ import annotations

import pytest
import torch

from mmhcg.runs import UserError
from mmhcg.runs.preflight import check_checkpoint


@pytest.mark.parametrize(
    ('part', 'refused'), [('meta', False), ('message_hub', False), ('optimizer', True), ('state_dict', True)]
)
def test_logs_may_hold_nan_and_what_is_trained_may_not(tmp_path, part, refused):
    """A log holds NaN for an epoch without a score; from such a file a run can go on."""
    path = tmp_path / 'epoch_1.pth'
    content = dict(state_dict={'w': torch.ones(1)}, meta={}, message_hub={}, optimizer={})
    content[part] = {'x': torch.tensor(float('nan'))}
    torch.save(content, path)
    if refused:
        with pytest.raises(UserError, match=rf'epoch_1\.pth: {part}\.x holds NaN or infinity'):
            check_checkpoint(str(path), resume=True)
    else:
        assert check_checkpoint(str(path), resume=True)[part]['x'].isnan()
