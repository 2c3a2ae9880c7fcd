"""Simulated people who search real documents, as the files that ``clickloop replay`` reads.

The base model answers, by exact search. People click as the demo's do (``demo/users.py``): a result is looked at
with probability 1/rank, and clicked if it is wanted, or by mistake. A few rate what they clicked, and a few are
bots that click everything.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks._worlds import data_folder
from clickloop.codec import split_key
from clickloop.events import DocumentChanged, VersionKind
from clickloop.model_store import ModelStore
from clickloop.recorded import Judged
from clickloop.replay import Options, Outcome, Parts, replay_files
from demo.corpus import stdlib_corpus
from streams.recorded import form_examples
from trainer.examples import document_of
from trainer.recorded import climb
from trainer.rung import Ladder
from trainer.settings import TrainerSettings
from trainer.truth import top

START = datetime(2026, 1, 5, tzinfo=UTC)
SECONDS_BETWEEN = 1.0
"""From one impression to the next."""
SHOWN = 10
RATING_SHARE = 0.08
BOT_SHARE = 0.005
USERS, BOTS = 2000, 3
PARTS = Parts(form_examples, climb)


@dataclass(frozen=True)
class Asked:
    text: str
    relevant: frozenset[str]


@dataclass(frozen=True)
class World:
    """``held_out`` queries never produce a click: what is measured on them is the truth."""

    documents: list[DocumentChanged]
    clicking: list[Asked]
    held_out: list[Asked]


@dataclass(frozen=True)
class Habits:
    """How much and how carefully people click; as the demo's do, unless said otherwise."""

    impressions: int = 10_000
    attractive: float = 0.95
    """Chance that a result that was looked at is clicked where it is wanted ..."""
    mistaken: float = 0.055
    """... and where it is not."""


def document(doc_id: str, title: str, text: str) -> DocumentChanged:
    return DocumentChanged(
        event_id=doc_id, index="default", doc_id=doc_id, changed_at=START, title=title, text=text
    )


def stdlib_world(*, documents: int | None = None, seed: int = 0) -> World:
    """The functions of Python's standard library and their docstrings' first sentences; see ``demo/corpus.py``."""
    corpus = stdlib_corpus(seed=seed)
    # The held-out ones come first in the corpus, so a part of it takes one in so many from everywhere.
    kept = corpus.documents[:: -(-len(corpus.documents) // documents) if documents else 1]
    ids = {one.doc_id for one in kept}

    def asked(queries: Sequence[Any]) -> list[Asked]:
        return [Asked(q.text, q.relevant) for q in queries if q.relevant <= ids]

    return World(
        [document(d.doc_id, d.title, d.text) for d in kept], asked(corpus.clicking), asked(corpus.held_out)
    )


def data_world(name: str, *, clicking: str, held_out: str, documents: int | None = None) -> World | None:
    """A set of ``CLICKLOOP_DATA``, clicked in one split and measured in another; None where it is not there.

    Of more than ``documents``, those without any judgement go first.
    """
    folder = data_folder()
    if folder is None or not (folder / name).is_dir():
        return None
    relevant: dict[str, set[str]] = {}
    for row in _rows(folder / name / "qrels.jsonl"):
        if row["grade"] > 0:
            relevant.setdefault(row["query_id"], set()).add(row["doc_id"])
    judged = set().union(*relevant.values())
    rows = sorted(_rows(folder / name / "docs.jsonl"), key=lambda row: row["id"] not in judged)[:documents]
    known = {row["id"] for row in rows}
    splits: dict[str, list[Asked]] = {clicking: [], held_out: []}
    for row in _rows(folder / name / "queries.jsonl"):
        wanted = frozenset(relevant.get(row["id"], set()) & known)
        if row["split"] in splits and wanted:
            splits[row["split"]].append(Asked(row["text"], wanted))
    made = [document(row["id"], row["title"], row["text"]) for row in rows]
    return World(made, splits[clicking], splits[held_out])


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def ladder_in(work: Path) -> Ladder:
    """On the store that ``replay_of`` publishes to."""
    settings = TrainerSettings.load(store_url=f"file://{work.resolve()}/store", work_dir=work / "trainer")
    return Ladder(settings, ModelStore(settings.store_url, cache=settings.work_dir / "cache"))


def base_answers(world: World, work: Path) -> NDArray[np.int64]:
    """(clicking, SHOWN) what the base model shows for each clicking query; its vectors stay in ``work``."""
    return answers_of(ladder_in(work).base().version, world, work)


def answers_of(version: str, world: World, work: Path) -> NDArray[np.int64]:
    """(clicking, SHOWN) what a version of the store in ``work`` shows."""
    documents = [document_of(one) for one in world.documents]
    model, vectors = ladder_in(work).loader.searched(version, documents, on_text=lambda *_: None)
    return top(model.encode_queries([query.text for query in world.clicking]), vectors, SHOWN)


def judged_of(world: World) -> list[Judged]:
    """The held-out queries with their truth."""
    return [Judged(query=one.text, relevant=dict.fromkeys(one.relevant, 1.0)) for one in world.held_out]


def traffic(
    world: World, answers: NDArray[np.int64], habits: Habits, *, seed: int, start: datetime = START
) -> list[dict[str, Any]]:
    """Wire messages from ``start`` on: queries, and what came of them, each user's feedback after the answer.

    No two seeds' queries have an id in common. ``answers`` are numbers of documents, best first; a negative one is
    none.
    """
    rng = random.Random(seed)
    people = [split_key(f"user-{n}") for n in range(USERS)]
    bots = [split_key(f"bot-{n}") for n in range(BOTS)]
    events: list[dict[str, Any]] = []
    for number in range(habits.impressions):
        asked = rng.randrange(len(world.clicking))
        shown = [world.documents[d].doc_id for d in answers[asked].tolist() if d >= 0]
        at = start + timedelta(seconds=SECONDS_BETWEEN * number)
        bot = rng.random() < BOT_SHARE
        key, query_id = rng.choice(bots if bot else people), f"{seed}-{number}"
        results = [{"doc_id": doc_id, "position": place} for place, doc_id in enumerate(shown, start=1)]
        common = {"query_id": query_id, "split_key": key}
        events.append(
            _event("QueryServed", served_at=at, query=world.clicking[asked].text, results=results, **common)
        )
        then = at + timedelta(seconds=rng.uniform(0.3, 1.2))
        for place, doc_id in enumerate(shown, start=1):
            wanted = doc_id in world.clicking[asked].relevant
            like = habits.attractive if wanted else habits.mistaken
            if not bot and not (rng.random() < 1.0 / place and rng.random() < like):
                continue
            events.append(_event("ResultClicked", clicked_at=then, doc_id=doc_id, position=place, **common))
            if not bot and rng.random() < RATING_SHARE:
                stars = rng.choice([4, 5, 5]) if wanted else rng.choice([1, 1, 2, 3])
                events.append(_event("ResultRated", rated_at=then, doc_id=doc_id, rating=stars, **common))
    return events


def _event(kind: str, **fields: Any) -> dict[str, Any]:
    written = {name: value.isoformat() if isinstance(value, datetime) else value for name, value in fields.items()}
    event_id = "-".join([kind, written["query_id"], written.get("doc_id", "")])
    return {"type": kind, "event_id": event_id, "index": "default", **written}


def write_world(world: World, folder: Path) -> tuple[Path, Path]:
    """Documents and judged queries, as replay reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    documents, judged = folder / "documents.jsonl", folder / "judged.jsonl"
    _write(documents, [{"doc_id": d.doc_id, "title": d.title, "text": d.text} for d in world.documents])
    _write(judged, [{"query": q.text, "relevant": dict.fromkeys(sorted(q.relevant), 1)} for q in world.held_out])
    return documents, judged


def _write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def replay_of(
    world: World,
    sent: Sequence[dict[str, Any]],
    *,
    kinds: list[VersionKind],
    work: Path,
    seed: int,
    say: Any,
    budget_seconds: float = 36000.0,
) -> Outcome:
    """Write what was ``sent``, and replay the files as ``clickloop replay`` does."""
    documents, judged = write_world(world, work)
    events = work / f"events-{seed}.jsonl"
    _write(events, sent)
    options = Options(documents, events, work, kinds, judged, budget_seconds=budget_seconds)
    return replay_files(options, PARTS, say=say)
