"""What the documents alone teach: pieces of a document, worded as a query might be, that must find it again.

This is the inverse cloze task (Lee, Chang and Toutanova 2019) with the first line as a second piece. It needs no
clicks, is never mistaken, and speaks about every document, also of those that no one has clicked.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

import numpy as np

from clickloop.text import masked
from trainer.dataset import Clicks
from trainer.examples import Document

MOST_DOCUMENTS = 3_000
"""Of more documents, a fixed random part is enough to learn how queries differ from documents."""
FIRST_LINE_WORDS = 16
SHORTEST, LONGEST = 5, 12
"""Words of a piece; queries are about as long."""
MOST_CHARACTERS = 200

_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
# On masked text, where "_" is a mark; behind one, a joiner is within a word.
_WORD = re.compile(r"[^\W_](?:\w|(?<=_)[\u200c\u200d](?=\w))+|\d")


def words(text: str) -> list[str]:
    """Words as people type them: identifiers fall apart, case and punctuation go, combining marks stay.

    >>> words("BaseEventLoop.run_forever(self)")
    ['base', 'event', 'loop', 'run', 'forever', 'self']
    """
    apart = _CAMEL.sub(" ", text).replace("_", " ")
    return [apart[found.start() : found.end()].lower() for found in _WORD.finditer(masked(apart))]


def pieces(document: Document) -> list[str]:
    """The first line, and a run of words from anywhere: always the same for the same content."""
    first = words(document.text.split("\n", 1)[0])[:FIRST_LINE_WORDS]
    everything = words(document.text)
    rng = random.Random(document.digest)
    length = rng.randint(SHORTEST, LONGEST)
    start = rng.randint(0, max(len(everything) - length, 0))
    found = (" ".join(first), " ".join(everything[start : start + length]))
    return [piece[:MOST_CHARACTERS] for piece in dict.fromkeys(found) if piece]


def domain_queries(documents: Sequence[Document], *, seed: int) -> Clicks:
    """Pieces of the documents as if each had been asked and its document clicked. ``vectors`` are empty yet."""
    chosen = list(range(len(documents)))
    if len(chosen) > MOST_DOCUMENTS:
        chosen = sorted(random.Random(seed).sample(chosen, MOST_DOCUMENTS))
    pairs = [(piece, number) for number in chosen for piece in pieces(documents[number])]
    ones = np.ones(len(pairs), dtype=np.float32)
    return Clicks(
        queries=[piece for piece, _ in pairs],
        query=np.arange(len(pairs), dtype=np.int64),
        document=np.asarray([number for _, number in pairs], dtype=np.int64),
        weight=ones,
        evidence=ones,
    )
