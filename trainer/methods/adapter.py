"""Rung 1: a linear map on the query vector, documents untouched. Seconds.

Three steps. The query vectors are partly whitened: directions that all queries share say little about what is
wanted, and are damped (Su et al. 2021, "Whitening Sentence Representations", here on the query side alone, to a
power between none and full). Pieces of documents, worded like queries, teach the map to find the documents that
they come from. Neither needs a click, so neither can learn the clicks' noise. Then the clicks move the map on.

Each descent is a softmax over the corpus, held near its start by distillation, and its result is drawn back by
averaging the weights (Wortsman et al. 2022, "Robust fine-tuning of zero-shot models"). How far is tried on clicks
that no step has seen yet; what is known to work elsewhere stays unless another choice is clearly better there.

A run that learns a sample of older examples again does not descend from its parent's map: run after run would
drift away from what the first ones learnt. It takes all three steps anew, which is a matter of seconds, and goes
half-way from the parent's map to what comes out (averaging as in Wortsman et al. 2022, "Model soups").
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from numpy.typing import NDArray

from clickloop.events import VersionKind
from trainer.belief import weighed
from trainer.dataset import Clicks
from trainer.gate import Side, Trial, measure
from trainer.methods import losses
from trainer.methods.base import Job, Notes, Progress, Trained
from trainer.methods.descent import Descended
from trainer.methods.targets import Indexes, Negatives, SampledNegatives, Targets
from trainer.methods.towers import Course, set_rate
from trainer.model import Adapter, Vectors

Choice = TypeVar("Choice")
Loss = Callable[[torch.Tensor, Indexes], torch.Tensor]
"""From query vectors (n, dim) and their row numbers (n,) to a loss."""

RECIPES = {
    "usual": (0.5, 0.75),
    "without clicks": (0.0, 0.75),
    "cautious": (0.5, 0.4),
    "parent": (0.0, 0.0),
}
"""How far to go from the domain's map towards the clicks' map, and then from the start to there."""
FLOOR = 1e-2
"""Added to every direction's variance, as a share of the largest: no direction is blown up without end."""
METRIC = "mrr_at_10"
ANEW_FROM = 0.2
"""Least share of older examples in a run; with fewer, a map learnt anew would know too little of them."""
STEP = 0.5
"""How far to go from the parent's map to one that was learnt anew."""
FEWEST_TRIED = 20
"""Clicked pairs on which recipes are told apart at all."""
CLEARLY = 2.0
"""Standard errors by which another recipe must beat the usual one (after Breiman's rule, with several to try)."""


@dataclass(frozen=True)
class Path:
    """The stations of one training, from which every recipe's map is mixed."""

    parent: Adapter
    start: Adapter
    """the parent's map, or, where there is none or it is learnt anew, the encoder's own vectors, whitened"""
    domain: Adapter
    clicked: Adapter
    queries: frozenset[str]
    """Those that had their say in ``clicked``."""
    notes: Notes
    """Of the descents, for the lineage."""
    domain_steps: int
    clicked_steps: int
    step: float
    """How far to go from the parent's map to what was learnt."""

    def mixed(self, recipe: str) -> Adapter:
        if recipe == "parent":
            return self.parent
        clicks, total = RECIPES[recipe]
        learnt = between(self.start, between(self.domain, self.clicked, clicks), total)
        return between(self.parent, learnt, self.step)


@dataclass(frozen=True)
class AdapterMethod:
    kind: VersionKind = "adapter"
    moments: int = 3
    epochs: int = 4
    batch: int = 256
    learning_rate: float = 1e-3
    distillation: float = 0.05
    power: float = 0.5
    """Of the whitening: 0 is none."""
    doubts: bool = True
    """Weigh each click by how far the others on its query agree (trainer/belief.py)."""

    def train(self, job: Job) -> Trained:
        earlier = job.earlier.carried
        known = earlier if isinstance(earlier, Path) else None
        path = self.walk(job, known)
        recipe = choose(job, known) if known else "usual"
        notes: Notes = {"recipe": recipe, "power": self.power, "step": path.step, **path.notes}
        # Where the time was up before the clicks had their turn, nothing was learnt from them.
        steps = path.domain_steps + path.clicked_steps if path.clicked_steps else 0
        return Trained(adapter=path.mixed(recipe), steps=steps, carried=path, notes=notes)

    def walk(self, job: Job, known: Path | None) -> Path:
        """All three steps; the first two only once in a run, and not where it goes on from the parent's map."""
        before, step = Descended(0, {}), 1.0
        gone_on_from = job.parent.adapter if job.replayed < ANEW_FROM else None
        if known:
            parent, start, domain, step = known.parent, known.start, known.domain, known.step
            before = Descended(known.domain_steps, known.notes)
        elif gone_on_from:
            parent = start = domain = gone_on_from
        else:
            own = Adapter.identity(job.clicks.vectors.shape[1])
            parent, step = (job.parent.adapter, STEP) if job.parent.adapter else (own, 1.0)
            start = whitened(own, job.clicks.vectors, self.power)
            domain, before = self.learn_domain(job, start) if len(job.domain) else (start, before)
        # What is learnt anew owes nothing to the parent's map, nor to the mistakes that it has learnt.
        searched = replace(job.parent, adapter=gone_on_from)
        clicked, then = self.learn_clicks(replace(job, parent=searched), domain)
        queries, notes = frozenset(job.clicks.queries), before.notes | then.notes
        return Path(parent, start, domain, clicked, queries, notes, before.steps, then.steps, step)

    def learn_domain(self, job: Job, start: Adapter) -> tuple[Adapter, Descended]:
        """Gradient descent from ``start`` on the documents' pieces."""
        negatives = SampledNegatives(job.corpus.vectors, job.seed)
        vectors, wanted = torch.from_numpy(job.domain.vectors), job.domain.document

        def loss(queries: torch.Tensor, rows: Indexes) -> torch.Tensor:
            return negatives.loss(queries, wanted[rows])

        return self._descend(job, vectors, start, loss)

    def learn_clicks(self, job: Job, start: Adapter) -> tuple[Adapter, Descended]:
        """Gradient descent from ``start`` on the clicks."""
        clicks = job.clicks
        targets = Targets(doubted(job) if self.doubts else clicks)
        before = start.apply(clicks.vectors)
        negatives = Negatives(job.corpus.vectors, clicks, before, job.seed)
        expected = torch.from_numpy(before)

        def loss(queries: torch.Tensor, rows: Indexes) -> torch.Tensor:
            scores = negatives.scores(queries)
            with torch.no_grad():
                old = negatives.scores(expected[rows])
            kept = losses.distillation(scores, old)
            return targets.loss(scores, rows, negatives.column) + self.distillation * kept

        return self._descend(job, torch.from_numpy(clicks.vectors), start, loss)

    def _descend(
        self, job: Job, vectors: torch.Tensor, start: Adapter, loss_of: Loss
    ) -> tuple[Adapter, Descended]:
        """``epochs`` rounds over ``vectors`` (n, dim), the encoder's."""
        generator = torch.Generator().manual_seed(job.seed)
        weight = torch.from_numpy(start.weight).clone().requires_grad_()
        bias = torch.from_numpy(start.bias).clone().requires_grad_()
        optimizer = torch.optim.AdamW([weight, bias], lr=self.learning_rate, weight_decay=0.0)
        count = len(vectors)
        course = Course(self.epochs * -(-count // self.batch), job.seconds_left, warm_up=0.3)
        step = 0
        while not course.over(step):
            order = torch.randperm(count, generator=generator).numpy()
            for first in range(0, count, self.batch):
                rows = order[first : first + self.batch]
                set_rate(optimizer, self.learning_rate * course.factor(step))
                loss = loss_of(F.normalize(vectors[rows] @ weight.T + bias, dim=1), rows)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                step += 1
                job.report(Progress("training", step, course.steps, loss.item(), step * self.batch))
                if course.over(step):
                    break
        return Adapter(weight.detach().numpy(), bias.detach().numpy()), Descended(step, course.notes())


def doubted(job: Job) -> Clicks:
    """The job's clicks, each with the weight that the others on its query leave it; all of it if it was given."""
    if job.given:
        return job.clicks
    return weighed(job.clicks, job.parent.searched_with(job.clicks.vectors), job.corpus.vectors)


def whitened(start: Adapter, queries: Vectors, power: float) -> Adapter:
    """``start`` after the queries' covariance to the power of minus ``power``, scaled to keep its norm.

    The covariance is shrunk towards a multiple of the identity, the more the fewer queries there are (oracle
    approximating shrinkage, Chen, Wiesel, Eldar and Hero 2010): a handful of queries whitens next to nothing.
    """
    if power == 0.0 or len(queries) < 2:
        return start
    values, directions = np.linalg.eigh(shrunk_covariance(queries))
    if values.max() <= 0.0:
        return start  # all have one vector: there is nothing to even out
    values = np.maximum(values, 0.0) + FLOOR * values.max()
    matrix = (directions * values**-power) @ directions.T
    matrix *= np.sqrt(len(matrix)) / np.linalg.norm(matrix)
    return Adapter((start.weight @ matrix).astype(np.float32), start.bias)


def shrunk_covariance(queries: Vectors) -> NDArray[np.float64]:
    """(dim, dim)"""
    count, dimension = queries.shape
    sample: NDArray[np.float64] = np.cov(queries.T.astype(np.float64), bias=True)
    trace, squares = np.trace(sample), float(np.sum(sample**2))
    spread = (count + 1.0 - 2.0 / dimension) * (squares - trace**2 / dimension)
    shrinkage = 1.0
    if spread > 0.0:
        shrinkage = min(((1.0 - 2.0 / dimension) * squares + trace**2) / spread, 1.0)
    even = np.eye(dimension) * trace / dimension
    return np.asarray((1.0 - shrinkage) * sample + shrinkage * even)


def choose(job: Job, earlier: Path) -> str:
    """The recipe for this moment, tried on what was clicked since the earlier one."""
    # By name: from moment to moment another number of synthetic queries stands in front.
    asked = range(job.clicks.synthetic, len(job.clicks.queries))
    since = job.clicks.of_queries([n for n in asked if job.clicks.queries[n] not in earlier.queries])
    if not len(since):
        return "usual"
    before = Side(earlier.parent.apply(since.vectors), job.corpus.vectors)
    trials = {
        recipe: measure(since, before, Side(earlier.mixed(recipe).apply(since.vectors), job.corpus.vectors))
        for recipe in RECIPES
    }
    return clearly_best(trials, usual="usual")


def between(start: Adapter, end: Adapter, share: float) -> Adapter:
    """The adapter a ``share`` of the way from ``start`` to ``end``."""
    return Adapter(
        start.weight + share * (end.weight - start.weight), start.bias + share * (end.bias - start.bias)
    )


def clearly_best(trials: Mapping[Choice, Trial], *, usual: Choice) -> Choice:
    """The choice with the best MRR among those that beat ``usual`` by CLEARLY standard errors, else ``usual``.

    All trials are of the same clicks. With a handful of them, which may have gained alike, an error tells nothing.
    """
    best, best_gain = usual, 0.0
    if len(trials[usual].weight) < FEWEST_TRIED:
        return usual
    for choice, trial in trials.items():
        share = trial.weight / trial.weight.mean()
        gains = share * (trial.after[METRIC] - trials[usual].after[METRIC])
        gain = float(gains.mean())
        error = float(gains.std(ddof=1)) / np.sqrt(len(gains))
        if gain > CLEARLY * error and gain > best_gain:
            best, best_gain = choice, gain
    return best
