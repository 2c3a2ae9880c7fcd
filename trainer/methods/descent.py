"""Gradient descent as the rungs that train encoders do it: along a course, told, and saved now and then."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray

from trainer.methods.base import Job, Notes, Progress
from trainer.methods.checkpoint import restore, state_of
from trainer.methods.early_stopping import EarlyStopping
from trainer.methods.towers import Course, set_rate
from trainer.methods.upper_layers import Layers

Indexes = NDArray[np.int64]
Batches = Callable[[int], Iterator[Indexes]]
"""From the number of an epoch to its batches, always the same for the same number."""
LossOf = Callable[[Indexes], torch.Tensor]
"""From the rows of a batch to their mean loss."""


@dataclass(frozen=True)
class Descended:
    steps: int
    notes: Notes
    """of the course"""
    examples: int = 0
    """seen, each as often as it was"""


def descend(
    job: Job,
    optimizer: torch.optim.Optimizer,
    batches: Batches,
    loss_of: LossOf,
    *,
    steps: int,
    learning_rate: float,
    layers: Layers,
    identity: Sequence[object],
    mining: bool = False,
    accumulate: int = 1,
    stopping: EarlyStopping | None = None,
) -> Descended:
    """At most ``steps`` steps from where the checkpoint says, each of ``accumulate`` batches of one epoch, or of
    the fewer that are left at its end.

    The norm of the gradient of ``layers`` is held at 1. ``identity`` are the facts that must be the same for a
    checkpoint to fit, beside the job's. With ``mining`` an epoch's batches depend on the weights at its start, so
    that a checkpoint is only good between epochs. ``stopping`` may end it sooner, and chooses the epoch whose
    weights are left.
    """
    checkpoint = job.checkpoint.for_training(*identity) if job.checkpoint else None
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    step = seen = cut_short = 0
    if checkpoint and (found := checkpoint.load()):
        tensors, counts = found
        restore(tensors, parameters, optimizer)
        step, seen, cut_short = counts["step"], counts["seen"], counts.get("cut_short", 0)
        if stopping:
            stopping.restore(tensors)

    def save() -> None:
        if checkpoint:
            tensors = state_of(parameters, optimizer) | (stopping.state() if stopping else {})
            checkpoint.save(tensors, {"step": step, "seen": seen, "cut_short": int(course.cut_short)})

    def look() -> None:
        if stopping and stopping.step < step:
            job.report(Progress("training", step, course.steps, None, seen, stopping.look(step, parameters)))

    course = Course(steps, job.seconds_left, first=step)
    course.cut_short = bool(cut_short)
    passed = epoch = 0
    while not (course.over(step) or (stopping and stopping.over)):
        for together in grouped(batches(epoch), accumulate):
            passed += 1
            if passed <= step:
                continue
            set_rate(optimizer, learning_rate * course.factor(step))
            optimizer.zero_grad()
            loss = add_gradients(together, loss_of)
            layers.complete_gradients()
            torch.nn.utils.clip_grad_norm_(layers.parameters, 1.0)
            optimizer.step()
            step, seen = step + 1, seen + sum(map(len, together))
            if checkpoint and not mining and (checkpoint.due() or course.over(step)):
                save()
            job.report(Progress("training", step, course.steps, loss, seen))
            if course.over(step):
                break
        epoch += 1
        if passed == step:
            look()
        if mining:
            save()
    look()  # the epoch that a checkpoint at its end, or the clock, left unmeasured
    if stopping:
        stopping.go_back(parameters)
    return Descended(step, course.notes() | (stopping.notes() if stopping else {}), seen)


def grouped(batches: Iterator[Indexes], size: int) -> Iterator[list[Indexes]]:
    while together := list(islice(batches, size)):
        yield together


def add_gradients(batches: Sequence[Indexes], loss_of: LossOf) -> float:
    """The mean loss of all rows; its gradients are added to the parameters', one batch's after the other's."""
    rows = sum(map(len, batches))
    total = 0.0
    for batch in batches:
        loss = loss_of(batch) * (len(batch) / rows)
        loss.backward()  # type: ignore[no-untyped-call]
        total += loss.item()
    return total
