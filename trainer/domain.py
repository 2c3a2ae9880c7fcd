"""What the documents alone teach: pieces of a document, worded as a query might be, that must find it again.

This is the inverse cloze task (Lee, Chang and Toutanova 2019) with the first line as a second piece. It needs no
clicks, is never mistaken, and speaks about every document, also of those that no one has clicked.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

import numpy as np

from trainer.dataset import Clicks
from trainer.examples import Document

MOST_DOCUMENTS = 3_000
"""Of more documents, a fixed random part is enough to learn how queries differ from documents."""
FIRST_LINE_WORDS = 16
SHORTEST, LONGEST = 5, 12
"""Words of a piece; queries are about as long."""
MOST_CHARACTERS = 200

_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_WORD = re.compile(r"[^\W_]{2,}|\d")


def words(text: str) -> list[str]:
    """Words as people type them: identifiers fall apart, case and punctuation go.

    >>> words("BaseEventLoop.run_forever(self)")
    ['base', 'event', 'loop', 'run', 'forever', 'self']
    """
    return [word.lower() for word in _WORD.findall(_CAMEL.sub(" ", text))]


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
