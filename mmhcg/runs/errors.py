"""The one exception that stands for a mistake in what the user gave."""

from __future__ import annotations


class UserError(Exception):
    """Something the user gave cannot work; the message names what, where and what to do instead.

    The tools print it as `error: ...`, without a traceback, and exit with code 2.
    """
