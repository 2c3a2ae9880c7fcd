"""When two texts of queries are one query, and what belongs to a word."""

from __future__ import annotations

import unicodedata

_JOINERS = "\u200c\u200d"
"""Shape the letters on their two sides; people leave them out."""


class _Normal(dict[int, str]):
    """What each code point becomes; filled as they are met."""

    def __missing__(self, code: int) -> str:
        sign = chr(code)
        if sign in _JOINERS or _selects_variation(code):
            self[code] = ""
        else:
            self[code] = sign if sign.isalnum() or sign == "_" or is_mark(sign) else " "
        return self[code]


class _Masked(dict[int, str]):
    def __missing__(self, code: int) -> str:
        sign = chr(code)
        self[code] = "_" if is_mark(sign) else sign
        return self[code]


_NORMAL = _Normal()
_MASKED = _Masked()


def normal_text(text: str) -> str:
    """Query texts that differ only in case, spaces, accents' encoding or punctuation have one normal text.

    >>> normal_text("  Read a FILE!") == normal_text("read a file")
    True
    """
    folded = text.lower() if text.isascii() else unicodedata.normalize("NFKC", text).casefold()
    return " ".join(folded.translate(_NORMAL).split())


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
