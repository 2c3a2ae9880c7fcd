"""A simulated population that searches, clicks, rates, changes its interests, and has a few bots in it.

Clicks follow the position-based model (Richardson et al. 2007; Chuklin et al., Click Models for Web Search,
2015): a result is clicked if it is examined, with probability 1/rank, and found attractive.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import aiohttp

from clickloop import FeedbackProducer
from clickloop.client import split_key
from demo.corpus import Query

ATTRACTIVE = 0.95
"""Probability that an examined relevant result is clicked."""
MISTAKEN = 0.055
"""Probability that an examined result of no relevance is clicked: about 20 % of all clicks come to be wrong."""
RATING_SHARE = 0.08
BOT_SHARE = 0.005
THINKING_SECONDS = (0.3, 1.2)
USERS = 2000
BOTS = 3


@dataclass
class Traffic:
    """What the population has done and seen so far. The driver owns it; the display reads it."""

    queries: int = 0
    failed_queries: int = 0
    clicks: int = 0
    wrong_clicks: int = 0
    bot_clicks: int = 0
    ratings: int = 0
    answers: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Answers by (version, space)."""
    first_answer: dict[str, float] = field(default_factory=dict)
    """When each version was first seen in an answer, in seconds since the epoch."""
    last_error: str = ""


@dataclass(frozen=True)
class Click:
    doc_id: str
    position: int
    wanted: bool


def clicks_on(doc_ids: Sequence[str], relevant: frozenset[str], rng: random.Random) -> list[Click]:
    """Which of the shown results a person clicks, top to bottom."""
    clicks = []
    for position, doc_id in enumerate(doc_ids, start=1):
        wanted = doc_id in relevant
        if rng.random() < 1.0 / position and rng.random() < (ATTRACTIVE if wanted else MISTAKEN):
            clicks.append(Click(doc_id, position, wanted))
    return clicks


class Population:
    """Sends queries to every node in turn and feeds back what its users do with the answers."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        nodes: Sequence[str],
        feedback: FeedbackProducer,
        *,
        traffic: Traffic,
        clock: Callable[[], float],
        seed: int,
    ) -> None:
        self._session = session
        self._nodes = nodes
        self._feedback = feedback
        self._traffic = traffic
        self._clock = clock
        self._rng = random.Random(seed)
        self._people = [split_key(f"user-{n}") for n in range(USERS)]
        self._bots = [split_key(f"bot-{n}") for n in range(BOTS)]

    async def rush(self, queries: Sequence[Query], *, until: Callable[[], bool], concurrency: int) -> None:
        """Ask random queries as fast as the nodes answer, ``concurrency`` at a time, until ``until()``."""

        async def person(group: asyncio.TaskGroup) -> None:
            while not until():
                await self.ask(self._rng.choice(queries), group)

        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(person(group))

    async def stroll(self, queries: Sequence[Query], *, until: Callable[[], bool], per_second: float) -> None:
        """Ask random queries at a steady rate until ``until()``."""
        async with asyncio.TaskGroup() as group:
            while not until():
                group.create_task(self.ask(self._rng.choice(queries), group))
                await asyncio.sleep(self._rng.expovariate(per_second))

    async def ask(self, query: Query, group: asyncio.TaskGroup) -> None:
        """One search, and in the background what its user does with the answer after a while."""
        traffic, rng = self._traffic, self._rng
        bot = rng.random() < BOT_SHARE
        key = rng.choice(self._bots if bot else self._people)
        body = {"query": query.text, "k": 10, "split_key": key, "mode": "dense"}
        number = traffic.queries
        traffic.queries += 1
        try:
            async with self._session.post(
                f"{self._nodes[number % len(self._nodes)]}/search", json=body
            ) as response:
                if response.status != 200:
                    raise aiohttp.ClientError(f"{response.status}: {(await response.text())[:200]}")
                answer = await response.json()
        except (aiohttp.ClientError, TimeoutError) as error:
            traffic.failed_queries += 1
            traffic.last_error = f"{type(error).__name__}: {error}"
            return
        traffic.answers[answer["version"], answer["space"]] += 1
        traffic.first_answer.setdefault(answer["version"], self._clock())
        shown = [result["doc_id"] for result in answer["results"]]
        behaviour = self._click_everything if bot else self._behave
        group.create_task(behaviour(answer["query_id"], shown, query, key))

    async def _behave(self, query_id: str, shown: list[str], query: Query, key: str) -> None:
        await asyncio.sleep(self._rng.uniform(*THINKING_SECONDS))
        for click in clicks_on(shown, query.relevant, self._rng):
            await self._feedback.click(query_id, click.doc_id, position=click.position, split_key=key)
            self._traffic.clicks += 1
            self._traffic.wrong_clicks += not click.wanted
            if self._rng.random() < RATING_SHARE:
                stars = self._rng.choice([4, 5, 5]) if click.wanted else self._rng.choice([1, 1, 2, 3])
                await self._feedback.rate(query_id, click.doc_id, stars, split_key=key)
                self._traffic.ratings += 1

    async def _click_everything(self, query_id: str, shown: list[str], _: Query, key: str) -> None:
        for position, doc_id in enumerate(shown, start=1):
            await self._feedback.click(query_id, doc_id, position=position, split_key=key)
            self._traffic.clicks += 1
            self._traffic.bot_clicks += 1


def two_phases(queries: Sequence[Query]) -> tuple[list[Query], list[Query]]:
    """The queries of one half of the topics, and of the other: what people ask about before and after the drift.

    Topics are dealt so that both halves have about as many queries. A corpus of one topic has no drift.
    """
    sizes = Counter(query.topic for query in queries)
    halves: tuple[set[str], set[str]] = (set(), set())
    weights = [0, 0]
    for topic, size in sorted(sizes.items(), key=lambda item: (-item[1], item[0])):
        lighter = 0 if weights[0] <= weights[1] else 1
        halves[lighter].add(topic)
        weights[lighter] += size
    first, second = ([query for query in queries if query.topic in half] for half in halves)
    return (first, second) if second else (first, first)
