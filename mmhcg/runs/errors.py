"""The exceptions that stand for a mistake in what the user gave, or for a run that must not go on."""

from __future__ import annotations


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
