"""The exceptions that stand for a mistake in what the user gave, or for a run that must not go on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from mmhcg.installation import DOCTOR


class UserError(Exception):
    """Something the user gave cannot work; the message names what, where and what to do instead.

    The tools print it as `error: ...`, without a traceback, and exit with `exit_code`.
    """

    exit_code = 2


class DivergedError(UserError):
    """Numbers of the model are NaN or infinite; the message says which and for which images.

    To start the run again as it was would end in the same way, which whoever starts it again must be able to
    tell from other ends.
    """

    exit_code = 3


@contextmanager
def importing() -> Iterator[None]:
    """Around an import of MMDetection: whatever it raises becomes a UserError that names the doctor.

    Versions that do not fit are AssertionErrors of MMDetection, RuntimeErrors of torchvision's operators, and
    AttributeErrors or ValueErrors of NumPy.
    """
    try:
        yield
    except Exception as error:
        message = f'MMDetection cannot be imported ({type(error).__name__}: {error}): {DOCTOR}'
        raise UserError(message) from error
