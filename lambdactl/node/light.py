"""What the runner needs of `re`, `json`, `glob` and `signal` without loading these: every session pays for its start.

`json` loads `re`, which loads `enum` and `functools`: more CPU than a bare start of Python takes. So patterns are
compiled when they are first used, and the C modules that do the work behind the others are used as they are; where an
implementation of Python has them not, the modules themselves are.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    import re
    import signal
    from typing import Any
else:
    try:
        import _signal as signal
    except ImportError:
        import signal

__all__ = ["Pattern", "compact", "dumps", "is_word", "loads", "made_of", "named", "signal"]

SPACE = " \t\n\r"


def made_of(text: str, allowed: str) -> bool:
    """Whether every character of the text is one of these."""
    return not text.strip(allowed)


def is_word(text: str, first: str, rest: str, most: int) -> bool:
    """Whether a text of one to `most` characters begins with one of `first` and is made of `rest`."""
    return 1 <= len(text) <= most and text[0] in first and made_of(text, rest)


def named(folder: str, begin: str = "", end: str = "") -> list[str]:
    """The paths in a folder whose names begin and end so, sorted, hidden ones left out; `glob` would load `re`."""
    import os

    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return []
    shown = [name for name in names if not name.startswith(".")]
    return [f"{folder}/{name}" for name in shown if name.startswith(begin) and name.endswith(end)]


class Pattern:
    """A regular expression that is compiled when it is used for the first time."""

    def __init__(self, text: str, *flags: str) -> None:
        self._text = text
        self._flags = flags
        self._compiled: re.Pattern[str] | None = None

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if self._compiled is None:
            import re

            flags = 0
            for flag in self._flags:
                flags |= getattr(re, flag)
            self._compiled = re.compile(self._text, flags)
        return getattr(self._compiled, name)


def _constant(name: str) -> float:
    return float(name.replace("Infinity", "inf"))


class _Rules:
    """What the scanner asks of a decoder."""

    strict = True
    object_hook = object_pairs_hook = None
    parse_float, parse_int = float, int
    parse_constant = staticmethod(_constant)


def _refuse(value: object) -> object:
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")


def _coders() -> tuple[Any, Any]:
    """(scanner, maker of encoders), or Nones where `json` has to do it."""
    try:
        from _json import encode_basestring_ascii, make_encoder, make_scanner

        def encoder(item: str, key: str) -> Any:
            return make_encoder({}, _refuse, encode_basestring_ascii, None, key, item, False, False, True)

        rules: Any = _Rules
        return make_scanner(rules), encoder
    except (ImportError, TypeError, AttributeError):
        return None, None


_scan, _encoder = _coders()


def loads(text: str | bytes) -> Any:
    """`json.loads`, of UTF-8. Raises ValueError, RecursionError."""
    plain = (text if isinstance(text, str) else text.decode("utf-8")).strip(SPACE)
    if _scan is not None:
        try:
            value, end = _scan(plain, 0)
            if end == len(plain):
                return value
        except (StopIteration, SystemError):  # it finds no words for what is wrong while `json` is not loaded
            pass
    import json

    return json.loads(plain)


def dumps(value: object) -> str:
    """`json.dumps`."""
    return _dump(value, ", ", ": ")


def compact(value: object) -> str:
    """`json.dumps` without spaces."""
    return _dump(value, ",", ":")


def _dump(value: object, item: str, key: str) -> str:
    if _encoder is None:
        import json

        return json.dumps(value, separators=(item, key))
    return "".join(_encoder(item, key)(value, 0))
