"""What an operator can ask for: presets over the same parts, in one table."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import unquote

import fsspec
import msgspec
import numpy as np
from msgspec import Meta

from clickloop.commands import Retrain, Strategy
from clickloop.errors import TrainingError
from clickloop.events import DocumentChanged, VersionKind
from clickloop.files import rows
from clickloop.generating import generate
from clickloop.manifest import sha256_file
from trainer.dataset import Clicks, Corpus, of_pairs
from trainer.examples import Document
from trainer.methods import methods_of
from trainer.methods.base import Method, Notes
from trainer.methods.full import FullMethod
from trainer.methods.targets import SCALE
from trainer.model import Vectors
from trainer.rung_settings import RungSettings

QUERIES_PER_DOCUMENT = 3
LEAST_BELIEF = 0.05
"""A pseudo-query that the parent believes less is about another document as well, or about none."""
SHORTEST_SECRET = 4
"""Characters; a shorter part of a user or a query is found in any text, and guards nothing."""
_BLOCK = 512
_CELLS = 1 << 25
"""Pairs times documents whose scores are in memory at once."""
_CHAIN = re.compile(r"::(?=[A-Za-z][\w+.-]*://)")
_SECRETS = re.compile(r"(?<=://)[^/?#]*@|[?#].*", re.DOTALL)
_URI = re.compile(r"""[A-Za-z][\w+.-]*://[^\s'"<>()]+""")
_ANY_TIME = datetime(2026, 1, 1, tzinfo=UTC)


class _Pair(msgspec.Struct):
    query: Annotated[str, Meta(min_length=1, pattern=r"\S")]
    doc_id: str
    weight: Annotated[float, Meta(gt=0.0, le=1.0)] | None = None
    """None, as an empty cell has it, is 1."""


_decoder = msgspec.json.Decoder(_Pair, strict=False)  # a cell of CSV is text


@dataclass(frozen=True)
class Preset:
    from_base: bool = False
    """Start from the base model, unless the command names a parent."""
    whole_history: bool = False
    """Read all that the log holds up to the command's ranges."""
    replay: bool = False
    """Mix a sample of the examples before the command's ranges in, against forgetting."""
    taught_by: Literal["clicks", "documents", "file"] = "clicks"
    """Where it is not clicks, those of the command's ranges only judge."""
    hard_negatives: int = 0
    """Mined for each query anew in each epoch."""


PRESETS: dict[Strategy, Preset] = {
    "incremental": Preset(replay=True),
    "full_retrain": Preset(from_base=True, whole_history=True),
    "domain_adaptation": Preset(taught_by="documents"),
    "fine_tune": Preset(taught_by="file"),
    "contrastive": Preset(replay=True, hard_negatives=4),
}


def method_of(kind: VersionKind, strategy: Strategy, settings: RungSettings) -> Method:
    """The rung as the strategy trains it by these settings.

    The query-side rungs have the whole corpus to beat in every step, so that the hard negatives are among them
    whatever the strategy; only both towers must choose.
    """
    method = methods_of(settings)[kind]
    if isinstance(method, FullMethod):
        return replace(method, hard_negatives=PRESETS[strategy].hard_negatives)
    return method


@dataclass(frozen=True)
class Taught:
    """What a strategy brings along, without vectors, and for the lineage where it comes from."""

    pairs: Clicks
    source: Notes = field(default_factory=dict)


def taught(command: Retrain, documents: Sequence[Document], *, seed: int) -> Taught | None:
    """The pairs that the strategy brings along; None where the clicks teach.

    Raises TrainingError where a file can't be read or names no document of the index.
    """
    match PRESETS[command.strategy].taught_by:
        case "documents":
            return Taught(pseudo_queries(documents, seed=seed))
        case "file":
            return pairs_of_file(command.pairs_uri, documents)
        case "clicks":
            return None


def pseudo_queries(documents: Sequence[Document], *, seed: int) -> Clicks:
    """What a person might ask to find each document, made from the documents alone."""
    position = {document.doc_id: number for number, document in enumerate(documents)}
    # The title is the text's first line; a document's time says nothing about what is asked for it.
    changed = [
        DocumentChanged(
            event_id=d.doc_id, index="-", doc_id=d.doc_id, changed_at=_ANY_TIME, title=title, text=text
        )
        for d in documents
        for title, _, text in [d.text.partition("\n")]
    ]
    pairs = generate(changed, per_document=QUERIES_PER_DOCUMENT, seed=seed)
    return of_pairs([(pair.query, position[pair.doc_id], 1.0) for pair in pairs])


def pairs_of_file(uri: str, documents: Sequence[Document]) -> Taught:
    """Rows of ``query``, ``doc_id`` and, where there is one, a ``weight``."""
    if not uri:
        raise TrainingError("fine_tune needs a file of pairs (pairs_uri)")
    position = {document.doc_id: number for number, document in enumerate(documents)}
    found: list[tuple[str, int, float]] = []
    named = without_secrets(uri)
    with tempfile.TemporaryDirectory(prefix="clickloop-pairs-") as folder:
        path = Path(folder) / Path(named).name
        try:
            files, source = fsspec.url_to_fs(uri)
            files.get_file(source, str(path))
        except Exception as error:  # noqa: BLE001 - each kind of storage raises errors of its own
            raise TrainingError(f"{named} can't be read: {reason(error, uri)}") from None
        origin: Notes = {"pairs_uri": named, "pairs_sha256": sha256_file(path)}
        for row in rows(path):
            place = f"{named}, row {row.place.rpartition(':')[2]}"
            if row.value is None:
                raise TrainingError(f"{place}: {row.reason}")
            try:
                pair = _decoder.decode(row.value)
            except msgspec.DecodeError as error:
                raise TrainingError(f"{place} is no pair: {error}") from None
            if pair.doc_id in position:
                weight = 1.0 if pair.weight is None else pair.weight
                found.append((pair.query, position[pair.doc_id], weight))
    if not found:
        raise TrainingError(f"{named} names no document of the index")
    return Taught(of_pairs(found), origin)


def without_secrets(uri: str) -> str:
    """The URI, or each of a chain of them, without what may let a reader in: its user and its query."""
    return "::".join(_SECRETS.sub("", part) if "://" in part else part for part in _CHAIN.split(uri))


def reason(error: Exception, uri: str) -> str:
    """What a library says of a URI, with no URI's secrets in it; where it may still hold one, only its type."""
    said = _URI.sub(lambda found: without_secrets(found[0]), str(error).replace(uri, without_secrets(uri)))
    secrets = [word for part in _SECRETS.findall(uri) if "://" in uri for word in re.split(r"[?#&=:@]", part)]
    told = any(len(word) >= SHORTEST_SECRET and (word in said or unquote(word) in said) for word in secrets)
    return type(error).__name__ if told else said or type(error).__name__


def believed_by_parent(pairs: Clicks, asked: Vectors, corpus: Corpus) -> Clicks:
    """Pseudo-queries as far as the parent finds their documents: its score is the label (after GPL, Wang et al.
    2022, with the parent as the teacher; round trips as in Promptagator, Dai et al. 2023).

    ``asked`` are the queries as the parent searches with them. A pair whose document is on top keeps all of its
    evidence, another as much as its chance is beside the top one's; one that is believed next to nothing goes.
    """
    belief = np.ones(len(pairs), dtype=np.float32)
    rows = max(1, min(_BLOCK, _CELLS // max(len(corpus.vectors), 1)))
    for start in range(0, len(pairs), rows):
        part = slice(start, start + rows)
        scores = asked[pairs.query[part]] @ corpus.vectors.T
        own = scores[np.arange(len(scores)), pairs.document[part]]
        belief[part] = np.exp(SCALE * (own - scores.max(axis=1)))
    evidence = pairs.evidence * belief
    return replace(pairs, evidence=evidence, weight=evidence).of_rows(belief >= LEAST_BELIEF)
