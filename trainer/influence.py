"""No document may teach out of all proportion: the last defence against a flood of clicks, and the only one that
sees all of a run's examples at once.

A document that claims far more than its share has been pushed, or is so well known that it needs no more teaching.
Either way it keeps as many examples as the average document has, those first whose keys also click other things:
people do, and what was made up to push one document does not. This is a redescending estimate (Hampel 1974): what
lies too far out does not count at its limit, but next to nothing.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from statistics import mean, median

from clickloop.events import ExampleFormed

OUT_OF_PROPORTION = 10.0
"""Times the median document's claim."""
FREE = 20
"""Claims that no document is too much for."""


def proportionate(examples: Sequence[ExampleFormed], *, max_share: float) -> list[ExampleFormed]:
    """The examples without the surplus of documents that claim more than ``max_share`` of all, in their order.

    A claim is a positive example, whatever it weighs: what the stream rules have quarantined is a claim as well.
    With ``max_share`` 0 nothing is left out.
    """
    claims = Counter(example.doc_id for example in examples if example.label == "positive")
    if not claims or not max_share:
        return list(examples)
    limit = max(FREE, max_share * claims.total(), OUT_OF_PROPORTION * median(claims.values()))
    pushed = {doc_id for doc_id, count in claims.items() if count > limit}
    if not pushed:
        return list(examples)
    usual = mean([count for doc_id, count in claims.items() if doc_id not in pushed] or [FREE])
    kept = _most_credible(examples, pushed, each=round(usual))
    return [e for e in examples if e.doc_id not in pushed or e.label == "negative" or e.example_id in kept]


def _most_credible(examples: Sequence[ExampleFormed], pushed: set[str], *, each: int) -> set[str]:
    breadth: defaultdict[str, set[str]] = defaultdict(set)
    for example in examples:
        if example.split_key and example.weight > 0.0 and example.doc_id not in pushed:
            breadth[example.split_key].add(example.doc_id)
    candidates: defaultdict[str, list[tuple[int, bytes, str]]] = defaultdict(list)
    for example in examples:
        if example.doc_id in pushed and example.label == "positive" and example.weight > 0.0:
            chance = hashlib.blake2b(example.example_id.encode(), digest_size=8).digest()
            known = breadth.get(example.split_key, ())
            candidates[example.doc_id].append((-len(known), chance, example.example_id))
    return {example_id for found in candidates.values() for _, _, example_id in sorted(found)[:each]}
