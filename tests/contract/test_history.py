"""Files in and out, on every broker: imported history joins, however old, and once."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from clickloop import topics
from clickloop.events import ExampleFormed, MessageQuarantined, QueryServed, ResultClicked
from demo.processes import ProcessGroup
from tests.contract.test_admin import clickloop
from tests.streams_worker import last_revisions, read_all, until, worker

LONG_AGO = datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC)
QUERIES = 40


def history(folder: Path) -> list[str]:
    """Queries as UBI records, and clicks in a CSV with our names, a year or two old; five rows are rubbish."""
    queries, clicks = folder / "queries.jsonl", folder / "clicks.csv"
    at = [LONG_AGO + timedelta(minutes=n) for n in range(QUERIES)]
    records = [
        {
            "query_id": f"q{n}",
            "user_query": f"shoes {n}",
            "client_id": f"user-{n % 7}",
            "timestamp": moment.isoformat(),
            "query_response_hit_ids": [f"d{n}", f"d{n + 1}", f"d{n + 2}"],
        }
        for n, moment in enumerate(at)
    ]
    queries.write_text("\n".join(map(json.dumps, records)) + "\n{broken\n")
    rows = [f"q{n},d{n + 1},{(moment + timedelta(seconds=9)).isoformat()}" for n, moment in enumerate(at)]
    clicks.write_text("\n".join(["query_id,doc_id,clicked_at", *rows, *["q1,,"] * 4]) + "\n")
    return [str(queries), str(clicks)]


async def test_imported_history_joins_however_old_and_counts_once_however_often_it_is_sent(
    any_broker: Any, tmp_path: Path
) -> None:
    broker = any_broker
    files = history(tmp_path)
    rejected = tmp_path / "rejected.jsonl"
    with ProcessGroup() as processes:
        process = processes.start(worker(broker, tmp_path))
        first = await asyncio.to_thread(clickloop, broker, "import", *files, "--rejected", str(rejected))
        assert first.stdout == "85 rows: 40 queries, 40 clicks sent; 5 rejected\n", first.stderr
        assert first.returncode == 1
        assert len(rejected.read_text().splitlines()) == 5
        examples = await until(
            broker,
            topics.TRAINING_EXAMPLES,
            ExampleFormed,
            lambda e: len(last_revisions(e)) >= QUERIES,
            seconds=60,
        )
        once = last_revisions(examples)
        again = await asyncio.to_thread(clickloop, broker, "import", *files)
        assert again.stdout == first.stdout
        # What is sent last is handled last: once this click's example is there, so is the rest.
        late = tmp_path / "late.jsonl"
        late.write_text(
            "".join(
                json.dumps({"query_id": f"q{n}", "doc_id": f"d{n}", "clicked_at": LONG_AGO.isoformat()}) + "\n"
                for n in range(3)
            )
        )
        assert (await asyncio.to_thread(clickloop, broker, "import", str(late))).returncode == 0
        examples = await until(
            broker,
            topics.TRAINING_EXAMPLES,
            ExampleFormed,
            lambda e: len(last_revisions(e)) >= QUERIES + 3,
            seconds=30,
        )
        process.check()
    assert len(once) == QUERIES
    untouched = {e.example_id for e in examples if e.query_id not in {"q0", "q1", "q2"}}
    assert {i: r for i, r in last_revisions(examples).items() if i in untouched} == {
        i: r for i, r in once.items() if i in untouched
    }
    assert {e.served_at for e in examples if e.query_id == "q5"} == {LONG_AGO + timedelta(minutes=5)}
    assert await read_all(broker, topics.DEAD_LETTERS, MessageQuarantined) == []
    queries = await read_all(broker, topics.QUERIES, QueryServed)
    clicks = await read_all(broker, topics.CLICKS, ResultClicked)
    assert len({q.event_id for q in queries}) == QUERIES
    assert len({c.event_id for c in clicks}) == QUERIES + 3


async def test_a_start_without_clicks_goes_in_as_synthetic_examples_and_out_as_pairs(
    broker: Any, tmp_path: Path
) -> None:
    documents = tmp_path / "documents.jsonl"
    lines = [json.dumps({"doc_id": f"d{n}", "title": f"Trail shoe model {n}"}) for n in range(110)]
    documents.write_text("\n".join(lines))
    sent = await asyncio.to_thread(clickloop, broker, "import", str(documents), "--topic", "documents")
    assert sent.stdout == "110 rows: 110 documents sent; 0 rejected\n", sent.stderr
    for _ in range(2):
        made = await asyncio.to_thread(clickloop, broker, "generate", "--documents", str(documents), "--send")
        assert made.returncode == 0, made.stderr
    assert made.stderr == ("110 pairs sent as synthetic examples, from 110 documents: 110 from a title\n")
    examples = await read_all(broker, topics.TRAINING_EXAMPLES, ExampleFormed)
    assert len(examples) == 220
    assert len(last_revisions(examples)) == 110
    assert {(e.origin, e.weight, e.label) for e in examples} == {("synthetic", 0.1, "positive")}

    out = await asyncio.to_thread(clickloop, broker, "export", "--format", "pairs", "--as", "csv")
    assert out.returncode == 0, out.stderr
    assert out.stderr == "110 pairs from 110 examples; 0 of them of documents that are not there\n"
    assert out.stdout.startswith("query,document,label,weight,query_id,doc_id,origin\nTrail shoe model")
    nothing = await asyncio.to_thread(
        clickloop,
        broker,
        "export",
        "--format",
        "preferences",
        "--until",
        "2020-01-01",
        "--output",
        str(tmp_path / "p"),
    )
    assert nothing.stderr.startswith("0 preferences from 0 examples")
    assert (tmp_path / "p").read_text() == ""
    wrong = await asyncio.to_thread(clickloop, broker, "export", "--format", "pairs", "--since", "yesterday")
    assert (wrong.returncode, len(wrong.stderr.splitlines())) == (2, 1)
