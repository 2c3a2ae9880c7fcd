"""No document may teach out of all proportion: the last defence against a flood of clicks, or of low ratings, and
the only one that sees all of a run's examples at once.

A document that claims far more than its share has been pushed, or is so well known that it needs no more teaching.
Either way it keeps at most as many examples as the average document has: those whose keys click the most other
things, for people do, and what was made up to push one document does not. This is a redescending estimate (Hampel
1974): what lies too far out does not count at its limit, but next to nothing.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from statistics import mean, median
from typing import Literal

from msgspec.structs import replace

from clickloop.events import ExampleFormed

Label = Literal["positive", "negative"]

OUT_OF_PROPORTION = 10.0
"""Times the median document's claim."""
FREE = 20
"""Claims that no document is too much for."""

SHARES = frozenset({"document_share", "query_share"})
"""Reasons of the stream rules that are not the key's own fault."""


def proportionate(examples: Sequence[ExampleFormed], *, max_share: float) -> list[ExampleFormed]:
    """The examples without the surplus of documents that claim more than ``max_share`` of all, in their order.

    A claim is an example of someone's feedback, whatever it weighs: what the stream rules have quarantined is a
    claim as well. Claims for a document and claims against it, which are low ratings, are held to this apart.
    With ``max_share`` 0 nothing is left out.
    """
    return _of_label("negative", _of_label("positive", examples, max_share), max_share)


def _of_label(label: Label, examples: Sequence[ExampleFormed], max_share: float) -> list[ExampleFormed]:
    claims = Counter(example.doc_id for example in examples if _is_claim(example, label))
    if not claims or not max_share:
        return list(examples)
    limit = max(FREE, max_share * claims.total(), OUT_OF_PROPORTION * median(claims.values()))
    pushed = {doc_id for doc_id, count in claims.items() if count > limit}
    if not pushed:
        return list(examples)
    usual = mean([count for doc_id, count in claims.items() if doc_id not in pushed] or [FREE])
    kept = _most_credible(examples, label, pushed, each=round(usual))
    strengths = [stated for example in examples for stated in example.worse.values() if stated > 0.0]
    strength = mean(strengths or [1.0])
    chosen = []
    for example in examples:
        if example.doc_id not in pushed or not _is_claim(example, label):
            chosen.append(example)
        elif example.example_id in kept:
            # Its key did nothing wrong: what the stream took away for the document's sake is given back.
            chosen.append(_given_back(example, strength) if example.reason in SHARES else example)
    return chosen


def _given_back(example: ExampleFormed, strength: float) -> ExampleFormed:
    """What was preferred is of the usual ``strength``: its own went with what was taken away."""
    merely_preferred = example.worse and not example.clicks and example.rating is None
    trust = strength if merely_preferred else 1.0
    worse = {doc_id: stated or strength for doc_id, stated in example.worse.items()}
    return replace(example, weight=trust, trust=trust, reason="", worse=worse)


def _is_claim(example: ExampleFormed, label: Label) -> bool:
    return example.label == label and example.origin == "clicks"


def _most_credible(examples: Sequence[ExampleFormed], label: Label, pushed: set[str], *, each: int) -> set[str]:
    """Ids of at most ``each`` examples of every pushed document."""
    breadth: defaultdict[str, set[str]] = defaultdict(set)
    for example in examples:
        if example.split_key and example.weight > 0.0 and example.doc_id not in pushed:
            breadth[example.split_key].add(example.doc_id)
    candidates: defaultdict[str, list[tuple[int, bytes, str]]] = defaultdict(list)
    for example in examples:
        if example.doc_id not in pushed or not _is_claim(example, label):
            continue
        if example.weight > 0.0 or example.reason in SHARES:
            chance = hashlib.blake2b(example.example_id.encode(), digest_size=8).digest()
            others = len(breadth.get(example.split_key, ()))
            candidates[example.doc_id].append((-others, chance, example.example_id))
    kept: set[str] = set()
    for found in candidates.values():
        known = [candidate for candidate in found if candidate[0]]
        kept.update(example_id for _, _, example_id in sorted(known or found)[:each])
    return kept
