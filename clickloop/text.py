"""When two texts of queries are one query, and what belongs to a word."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

_JOINERS = "\u200c\u200d"
"""Shape the letters on their two sides; people leave them out."""


REMEMBERED = 10_000
"""Code points whose turn is looked up but once: more than any one script has. All of Unicode is a million."""


class _Table(dict[int, str]):
    """What each code point becomes, for ``str.translate``; filled as they are met."""

    def __init__(self, turned: Callable[[str], str]) -> None:
        self._turned = turned

    def __missing__(self, code: int) -> str:
        turned = self._turned(chr(code))
        if len(self) < REMEMBERED:
            self[code] = turned
        return turned


def _normal(sign: str) -> str:
    if sign in _JOINERS or _selects_variation(ord(sign)):
        return ""
    return sign if sign.isalnum() or sign == "_" or is_mark(sign) else " "


_NORMAL = _Table(_normal)
_ENDS = re.compile(r"(?<=\w)(\+{2,}|[+#]+(?!\w))")
"""What belongs to the word before it. One "+" between two words parts them, as in what was copied from a URL."""
_MASKED = _Table(lambda sign: "_" if is_mark(sign) else sign)


def normal_text(text: str) -> str:
    """Query texts that differ only in case, spaces, accents' encoding or punctuation have one normal text.

    A word may end in "+" and "#", which tell it from others.

    >>> normal_text("  Read a FILE!") == normal_text("read a file")
    True
    >>> [normal_text(text) for text in ("C++ file", "C# file", "a+b", "issue #5")]
    ['c++ file', 'c# file', 'a b', 'issue 5']
    """
    folded = text.lower() if text.isascii() else unicodedata.normalize("NFKC", text).casefold()
    if "+" not in folded and "#" not in folded:
        return " ".join(folded.translate(_NORMAL).split())
    parts = _ENDS.split(folded)
    parts[::2] = [part.translate(_NORMAL) for part in parts[::2]]
    return " ".join("".join(parts).split())


def is_mark(sign: str) -> bool:
    """Whether a character is a combining mark (Unicode's category M), as vowels are in Thai, Hindi or Arabic.

    Python's patterns take them for no part of a word.
    """
    return unicodedata.category(sign).startswith("M")


def masked(text: str) -> str:
    """The text with "_" for each combining mark, in which ``\\w`` finds whole words at the places that they have.

    >>> masked("\u0e27\u0e34\u0e18\u0e35") == "\u0e27_\u0e18_"
    True
    """
    return text if text.isascii() else text.translate(_MASKED)


def _selects_variation(code: int) -> bool:
    return 0xFE00 <= code <= 0xFE0F or 0xE0100 <= code <= 0xE01EF
