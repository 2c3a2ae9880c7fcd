"""When two texts of queries are one query."""

from __future__ import annotations

import re
import unicodedata

_NO_WORD = re.compile(r"[^\w]+")
_NO_ASCII_WORD = {code: " " for code in range(128) if _NO_WORD.match(chr(code))}


def normal_text(text: str) -> str:
    """Query texts that differ only in case, spaces, accents' encoding or punctuation have one normal text.

    >>> normal_text("  Read a FILE!") == normal_text("read a file")
    True
    """
    if text.isascii():
        return " ".join(text.lower().translate(_NO_ASCII_WORD).split())
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(_NO_WORD.sub(" ", folded).split())
