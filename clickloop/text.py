"""When two texts of queries are one query."""

from __future__ import annotations

import re
import unicodedata

_NO_WORD = re.compile(r"[^\w]+")


def normal_text(text: str) -> str:
    """Query texts that differ only in case, spaces, accents' encoding or punctuation have one normal text.

    >>> normal_text("  Read a FILE!") == normal_text("read a file")
    True
    """
    if text.isascii():
        return " ".join(_NO_WORD.sub(" ", text.lower()).split())
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(_NO_WORD.sub(" ", folded).split())
