"""A large JSON file entry by entry: half a gigabyte of annotations need not be in memory at once.

`json.load` of COCO's training annotations takes seven times the size of the file. Streaming parsers follow
the standard and refuse NaN and Infinity, which Python writes and reads, and which have to be found here.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from typing import Any, TextIO

CHUNK = 2**22  # characters read at a time
# Characters of one item; else a fault at its start would have all of the file read for its end
LONGEST = 2**26

_spaces = re.compile(r'[ \t\n\r]*')
_after_value = frozenset(' \t\n\r,:]}')
_decode = json.JSONDecoder().raw_decode


def json_entries(path: str | os.PathLike) -> Iterator[tuple[str, Any]]:
    """Key and value of each entry of the object in a file; of a list, an iterator that reads it on the way.

    Raises:
        OSError: the file cannot be read.
        ValueError: it holds no JSON object, in UTF-8, of entries with different names.
    """
    with open(path, encoding='utf-8') as file:
        text = _Text(file)
        seen = set()
        text.take('{')
        separator = text.take('}') if text.peek() == '}' else ','
        while separator == ',':
            key = text.value()
            if not isinstance(key, str) or key in seen:
                raise text.fault('two entries of one name' if isinstance(key, str) else 'no name of an entry')
            seen.add(key)
            text.take(':')
            if text.peek() == '[':
                items = text.items()
                yield key, items
                for _ in items:  # whatever the caller left of it
                    pass
            else:
                yield key, text.value()
            separator = text.take(',}')
        if text.peek():
            raise text.fault('more than one object')


class _Text:
    """A file's text, of which only the part in `buffer` from `at` on has yet to be looked at."""

    def __init__(self, file: TextIO) -> None:
        self.file, self.buffer, self.at, self.passed, self.ended = file, '', 0, 0, False

    def peek(self) -> str:
        """The next character that is no space; an empty string at the end."""
        self._pass_spaces()
        while self.at == len(self.buffer) and not self.ended:
            self._read_on()
            self._pass_spaces()
        return self.buffer[self.at : self.at + 1]

    def _pass_spaces(self) -> None:
        if found := _spaces.match(self.buffer, self.at):  # always, if only an empty one
            self.at = found.end()

    def take(self, expected: str) -> str:
        """The next character that is no space, which has to be one of those expected."""
        found = self.peek()
        if not found or found not in expected:
            raise self.fault(f'expecting {" or ".join(map(repr, expected))}')
        self.at += 1
        return found

    def value(self) -> Any:
        """The next value, whatever it is."""
        self.peek()
        while True:
            try:
                value, end = _decode(self.buffer, self.at)
                fault = None
            except json.JSONDecodeError as error:
                fault = error
            except RecursionError:
                raise self.fault('lists or objects nested too deep') from None
            # What ends with the buffer may go on behind it: of `1.5`, `1.` is read as 1.
            whole = fault is None and self.buffer[end : end + 1] in _after_value
            if whole or self.ended or len(self.buffer) - self.at > LONGEST:
                break
            self._read_on()
        if fault is not None:
            raise self.fault(fault.msg, fault.pos)
        self.at = end
        return value

    def items(self) -> Iterator[Any]:
        """The items of the list that comes next."""
        self.take('[')
        separator = self.take(']') if self.peek() == ']' else ','
        while separator == ',':
            yield self.value()
            separator = self.take(',]')

    def fault(self, message: str, at: int | None = None) -> ValueError:
        """An error that says where in the file it is."""
        at = self.at if at is None else at
        near = self.buffer[max(0, at - 20) : at + 20]
        return ValueError(f'{message} at character {self.passed + at}, near {near!r}')

    def _read_on(self) -> None:
        """Forget what was looked at and read as much again as is left, or a chunk."""
        rest = self.buffer[self.at :]
        more = self.file.read(max(CHUNK, len(rest)))
        self.passed += self.at
        self.buffer, self.at, self.ended = rest + more, 0, not more
