"""Several trainings of one encoder, each from a seed of its own, and the mean of their weights.

Trainings from one start end near one another, and the mean of their weights often ranks better than any of them,
for no more work when it is used (Wortsman et al. 2022, "Model soups: averaging weights of multiple fine-tuned
models").
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from sentence_transformers import SentenceTransformer

from clickloop.errors import TrainingError
from trainer.methods.base import Job, Notes, Progress
from trainer.methods.descent import Descended
from trainer.methods.towers import NOT_REPRODUCIBLE, draw_back

TrainOne = Callable[[Job], tuple[SentenceTransformer, Descended]]


def mean_of_seeds(job: Job, seeds: int, train: TrainOne) -> tuple[SentenceTransformer, Descended]:
    """The mean of what ``train`` makes of the job with each of so many seeds, and the trainings as if one.

    The first one has all the time there is. Another begins where there is time for it, and what the clock cuts
    short is left out.
    """
    started = time.monotonic()
    mean, whole = train(replace(job, report=_as_part(job, Descended(0, {}), 0, seeds)))
    longest = time.monotonic() - started
    for number in range(1, seeds):
        started = time.monotonic()
        trained = _in_time(_another(job, whole, number, seeds), longest, train)
        if not trained:
            reason = "the budget of seconds had no time for all seeds"
            return mean, replace(whole, notes=whole.notes | {"seeds_trained": number, NOT_REPRODUCIBLE: reason})
        encoder, descended = trained
        draw_back(mean, encoder, number / (number + 1))
        whole = _added(whole, descended, number + 1)
        longest = max(longest, time.monotonic() - started)
    return mean, whole


def _in_time(job: Job, seconds: float, train: TrainOne) -> tuple[SentenceTransformer, Descended] | None:
    """What the training gives, if it can take so many seconds and is whole at its end."""
    if job.seconds_left() <= seconds:
        return None
    try:
        trained = train(job)
    except TrainingError:
        if job.seconds_left() > 0.0:
            raise
        return None
    return None if NOT_REPRODUCIBLE in trained[1].notes else trained


def _another(job: Job, before: Descended, number: int, seeds: int) -> Job:
    return replace(
        job,
        seed=job.seed + number,
        checkpoint=job.checkpoint.another(number) if job.checkpoint else None,
        report=_as_part(job, before, number, seeds),
    )


def _as_part(job: Job, before: Descended, number: int, seeds: int) -> Callable[[Progress], None]:
    """Tells how far one training is as how far all of them are."""

    def report(progress: Progress) -> None:
        each = progress.steps or before.steps // max(number, 1)
        job.report(
            replace(
                progress,
                step=before.steps + progress.step,
                steps=before.steps + each * (seeds - number),
                examples=before.examples + progress.examples,
            )
        )

    return report


def _added(whole: Descended, one: Descended, number: int) -> Descended:
    """What differs between them is noted under a name with the training's number."""
    notes: Notes = {
        name if whole.notes.get(name, value) == value else f"{name}_{number}": value
        for name, value in one.notes.items()
    }
    return Descended(whole.steps + one.steps, whole.notes | notes, whole.examples + one.examples)
