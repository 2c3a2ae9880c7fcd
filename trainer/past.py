"""What a run has to learn from, cut at moments of the past."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, replace

from clickloop.commands import Strategy
from clickloop.errors import TooFewError, TrainingError
from clickloop.events import ExampleFormed, OffsetRange
from clickloop.text import normal_text
from trainer.dataset import Clicks, Prepared, after_synthetic, moments, prepare, too_few, unlike
from trainer.examples import Document
from trainer.loading import Loaded
from trainer.methods.base import Notes, Parent
from trainer.model import Adapter
from trainer.settings import TrainerSettings
from trainer.sharing import shared
from trainer.strategies import PRESETS, believed_by_parent


@dataclass(frozen=True)
class Data:
    """What a command trains on, once for all its rungs."""

    prepared: Prepared
    documents: list[Document]
    given: Clicks | None = None
    """What the strategy brings along; the clicks then only judge. Without vectors yet"""
    ranges: list[OffsetRange] = field(default_factory=list)
    """What was read."""
    replayed: int = 0
    """How many of the examples are older than the ranges."""
    replayed_share: float = 0.0
    """of all examples"""
    older: Set[str] = frozenset()
    """What those asked, as normal texts: the parent may have learnt it."""
    dropped: int = 0
    """The oldest examples, for which there was no room (``max_examples``)."""
    source: Notes = field(default_factory=dict)
    """For the lineage: of what is in no log, where it comes from."""
    examples: Sequence[ExampleFormed] = ()
    """Kept beside the version where no ranges name them."""


def data_of(
    examples: Sequence[ExampleFormed],
    documents: list[Document],
    settings: TrainerSettings,
    *,
    given: Clicks | None = None,
    ranges: Sequence[OffsetRange] = (),
    replayed: Set[str] = frozenset(),
    dropped: int = 0,
    source: Notes | None = None,
) -> Data:
    """The examples, oldest impression first, as all rungs see them. ``replayed``: ids of those that are older than
    the ranges."""
    prepared = prepare(
        examples,
        documents,
        bias=settings.position_bias,
        clip=settings.propensity_clip,
        max_document_share=settings.max_document_share,
    )
    count = len(replayed)
    share = count / len(examples) if count else 0.0
    again = (example for example in examples if example.example_id in replayed and example.origin == "clicks")
    older = frozenset(normal_text(example.query) for example in again)
    return Data(prepared, documents, given, list(ranges), count, share, older, dropped, source or {}, examples)


@dataclass(frozen=True)
class Moment:
    """A moment of the past at which a rung is tried."""

    known: Clicks
    """What is trained on."""
    later: Clicks
    """What judges it."""
    parent: Parent
    """As it was then."""


def past_of(
    loaded: Loaded, data: Data, settings: TrainerSettings, *, strategy: Strategy, count: int
) -> list[tuple[Clicks, Clicks]]:
    """Moments, oldest first: what is trained on, and what judges it. Raises TrainingError where there is none."""
    if data.given is not None:
        given, parent = loaded.synthetic, loaded.parent
        if PRESETS[strategy].taught_by == "documents":
            given = believed_by_parent(given, parent.searched_with(given.vectors), loaded.corpus)
        if not len(given):
            raise TrainingError("the parent believes no pair of query and document that was made")
        return [(given, unlike(given, loaded.clicks))]
    # What the parent has learnt must not judge: it would be ahead of a candidate that is denied the same.
    older = {number for number, text in enumerate(loaded.clicks.queries) if normal_text(text) in data.older}
    past = moments(loaded.clicks, share=settings.holdout_share, count=count, older=older)
    if not past and len(loaded.synthetic):
        # Nothing to judge it by yet: the verdict will be inconclusive, and say so.
        past = [(loaded.clicks, loaded.clicks.of_queries([]))]
    if not past:
        raise TooFewError(too_few(loaded.clicks, older))
    cap, debiased = settings.shared_evidence, settings.debiased_training
    told = [(replace(shared(known, cap=cap), debiased=debiased), later) for known, later in past]
    # What was made up must not be what clicks then judge by: no query is on both sides.
    return [(after_synthetic(unlike(later, loaded.synthetic), known), later) for known, later in told]


def with_parents(
    past: Sequence[tuple[Clicks, Clicks]], parent: Parent, below: Mapping[int, Adapter] | None
) -> list[Moment]:
    """The moments with the parent as it was at each.

    A parent of the same command has by now learnt from what came after the earlier moments, and nothing could beat
    it there. ``below`` has what it was with so many moments to go; without that, only the last moment is left. It
    is None for a parent of another command.
    """
    found = list[Moment]()
    for number, (known, later) in enumerate(past):
        to_go = len(past) - 1 - number
        if not to_go or below is None:
            found.append(Moment(known, later, parent))
        elif to_go in below:
            found.append(Moment(known, later, replace(parent, adapter=below[to_go])))
    return found


def check_enough(data: Data, settings: TrainerSettings, *, first: bool) -> None:
    """Raises TooFewError where nothing, or only noise, could be learnt from so little.

    ``first``: it is to train from the base model, which takes more than going on from a trained one.
    """
    prepared = data.prepared
    if not data.documents:
        raise TooFewError(f"index {settings.index!r} has no documents")
    if not any(document.text.strip() for document in data.documents):
        raise TooFewError(f"the documents of index {settings.index!r} have no text")
    if data.given is not None:
        pairs = int(data.given.counted().sum())
        if pairs < settings.min_examples:
            raise TooFewError(f"{pairs} pairs, {settings.min_examples} are needed (min_examples)")
        return
    if not len(prepared.clicks) and not len(prepared.synthetic):
        raise TooFewError("there is no positive example of a document in the index")
    total = prepared.positives + prepared.negatives
    if first and total < settings.min_examples:
        raise TooFewError(f"{total} examples, {settings.min_examples} are needed for a first model (min_examples)")
    if first and prepared.positives < settings.min_positive_share * total:
        raise TooFewError(
            f"{prepared.positives} of {total} examples are positive, a share of "
            f"{settings.min_positive_share:g} is needed (min_positive_share)"
        )
