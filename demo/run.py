"""One run of the demo, from top to bottom, in the order in which it happens."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from clickloop.evaluation import Ranks, per_query_metrics
from clickloop.events import ModelVersionPublished, VersionKind
from demo import services
from demo.evaluate import ranks_of
from demo.report import Report, estimates, rung_of
from demo.stage import Options, Say, Stage
from demo.users import two_phases

CONCURRENT_SEARCHES = 24
SEARCHES_PER_SECOND_WHILE_TRAINING = 8.0
QUERIES_PER_EXAMPLE = 10
"""Traffic gives up when this many queries for each wanted example have not brought the trigger to fire."""
COMMAND_SECONDS = 60.0
ROLLOUT_SECONDS = 120.0
RUN_SECONDS: dict[VersionKind, float] = {"adapter": 120.0, "query_encoder": 600.0, "full": 3600.0}
MODES = ("dense", "hybrid")

AllRanks = dict[str, Ranks]


async def run(stage: Stage, options: Options, *, say: Say) -> Report:
    """The whole story. Raises StackError or BrokerError where a part stops or a step takes too long."""
    started = time.monotonic()
    await index_documents(stage, options, say)
    base = await measure_base(stage, options, say)
    await traffic_until_command(stage, options, say)
    await train_and_swap(stage, options)
    report = await measure_versions(stage, options, base, say)
    sum_up(report, stage, options)
    report.seconds = round(time.monotonic() - started, 1)
    return report


async def index_documents(stage: Stage, options: Options, say: Say) -> None:
    """Send every document to Kafka, as an app would, and wait until both nodes have them all."""
    documents = options.corpus.documents
    for document in documents:
        await stage.feedback.document(
            document.doc_id, document.text, title=document.title, attributes={"topic": document.topic}
        )
    await stage.feedback.flush()
    say("documents", f"{len(documents):,} sent to Kafka; the nodes encode and index them")

    async def all_ready() -> bool:
        return all([await services.is_ready(stage.session, node) for node in stage.nodes])

    def all_indexed() -> bool:
        reports = [stage.watcher.loop.nodes.get(f"node-{number}") for number in range(1, len(stage.nodes) + 1)]
        return all(report is not None and report.documents >= len(documents) for report in reports)

    deadline = services.INDEXING_SECONDS
    await stage.until_async(all_ready, seconds=deadline, what="the nodes to be ready")
    await stage.until(all_indexed, seconds=deadline, what="the nodes to index the documents")
    say("nodes", "ready: " + ", ".join(stage.addresses))


async def measure_base(stage: Stage, options: Options, say: Say) -> AllRanks:
    """The base model on the held-out queries, before anyone has clicked."""
    versions = stage.watcher.loop.versions
    await stage.until(lambda: bool(versions), seconds=30, what="the base version's announcement")
    base = next(event.version for event in versions.values() if event.parent is None)
    ranks = await _all_ranks(stage, options, base)
    mrr = per_query_metrics(ranks["dense"])["mrr_at_10"].mean()
    say("before", f"{base}: MRR@10 {mrr:.3f} on {len(options.corpus.held_out)} held-out queries (dense search)")
    return ranks


async def traffic_until_command(stage: Stage, options: Options, say: Say) -> None:
    """People search and click, change their interests half way, and go on until the trigger fires."""
    loop, traffic, wanted = stage.watcher.loop, stage.traffic, options.examples
    limit = wanted * QUERIES_PER_EXAMPLE
    first, second = two_phases(options.corpus.clicking)

    def until(examples: int, queries: int) -> Callable[[], bool]:
        def condition() -> bool:
            stage.check()
            return bool(loop.commands) or len(loop.examples) >= examples or traffic.queries >= queries

        return condition

    say("users", "search, click and rate; a few bots click everything")
    await stage.population.rush(first, until=until(wanted // 2, limit // 2), concurrency=CONCURRENT_SEARCHES)
    say("users", "change their interests: from now on they ask about other topics")
    await stage.population.rush(second, until=until(2 * wanted, limit), concurrency=CONCURRENT_SEARCHES)
    await stage.until(lambda: bool(loop.commands), seconds=COMMAND_SECONDS, what="a retrain command")


async def train_and_swap(stage: Stage, options: Options) -> None:
    """While the trainer trains, people go on searching, so that every swap happens under load."""
    loop, traffic = stage.watcher.loop, stage.traffic
    command = loop.commands[0]
    seconds = sum(RUN_SECONDS[kind] for kind in command.kinds)
    done = asyncio.Event()
    _, second = two_phases(options.corpus.clicking)
    rate = SEARCHES_PER_SECOND_WHILE_TRAINING
    strolling = asyncio.create_task(stage.population.stroll(second, until=done.is_set, per_second=rate))
    try:
        await stage.until(lambda: loop.is_over(command), seconds=seconds, what="the training run to end")
        passed = [event.version for event in _trained(stage) if event.gate and event.gate.verdict == "pass"]
        if passed:
            newest = passed[-1]
            await stage.until(
                lambda: loop.live() == newest and newest in traffic.first_answer,
                seconds=ROLLOUT_SECONDS,
                what=f"all traffic to go to {newest}",
            )
    finally:
        done.set()
        await strolling


async def measure_versions(stage: Stage, options: Options, base: AllRanks, say: Say) -> Report:
    """Every version that passed its gate, on the held-out queries that the base was measured on."""
    report = Report()
    for event in _trained(stage):
        rung = rung_of(event, first_answer=stage.traffic.first_answer.get(event.version))
        if rung.verdict == "pass":
            after = await _all_ranks(stage, options, event.version)
            rung.dense = estimates(base["dense"], after["dense"])
            rung.hybrid = estimates(base["hybrid"], after["hybrid"])
            say("after", f"{event.version}: MRR@10 {rung.dense['mrr_at_10'].after:.3f} (dense search)")
        report.rungs.append(rung)
    return report


def sum_up(report: Report, stage: Stage, options: Options) -> None:
    """Count what happened, and name what should not have."""
    loop, traffic = stage.watcher.loop, stage.traffic
    announced = {(event.version, event.space) for event in loop.versions.values()}
    report.held_out = len(options.corpus.held_out)
    report.queries = traffic.queries
    report.failed_queries = traffic.failed_queries
    report.wrong_space_answers = sum(n for pair, n in traffic.answers.items() if pair not in announced)
    report.clicks = traffic.clicks
    report.examples = len(loop.examples)
    report.drift_reports = loop.drift_reports
    report.retrain_commands = len(loop.commands)
    report.swaps = len(loop.swaps)
    report.problems += [f"the training run failed: {reason}" for reason in loop.failures.values()]
    report.problems += report.problems_of_rungs(options.kinds)
    if traffic.failed_queries:
        report.problems.append(f"{traffic.failed_queries} queries failed, the last with {traffic.last_error}")
    if report.wrong_space_answers:
        report.problems.append(f"{report.wrong_space_answers} answers named a version and space never announced")


def _trained(stage: Stage) -> list[ModelVersionPublished]:
    return [event for event in stage.watcher.loop.versions.values() if event.parent is not None]


async def _all_ranks(stage: Stage, options: Options, version: str) -> AllRanks:
    held_out = options.corpus.held_out
    found = {}
    for mode in MODES:
        found[mode] = await ranks_of(stage.session, stage.addresses, held_out, version=version, mode=mode)
    return found
