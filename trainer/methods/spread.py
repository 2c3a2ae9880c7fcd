"""Training an encoder's upper layers over several ranks, with the loss and the gradient of one.

A loss over a batch looks at all its vectors at once, so it can't be split; embedding can. Rank 0 asks for a
batch's vectors, and each rank makes those of the texts that it holds. Rank 0 alone computes the loss, and gives
back the gradient by each vector; each rank goes back through its own part, and the parameters' gradients are added
up (GradCache's idea, Gao et al. 2021, between processes instead of between parts of a batch). Rank 0 takes the
step, and the next question carries the new weights. So batches, clock, optimizer and checkpoint are those of one
process, and only the order of sums differs.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType

import msgspec
import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from clickloop.lora import LoraConfig
from trainer.methods.upper_layers import Factors, Indexes, Layers, OnText, UpperLayers, all_vectors
from trainer.model import Vectors, load_encoder
from trainer.ranks import RankLostError, Ranks, Say


class _Opening(msgspec.Struct):
    """What the other ranks must know before the first question."""

    layers: int
    most_tokens: int | None
    files: list[str]
    """of the encoder's folder; their bytes follow"""
    low_rank: LoraConfig | None = None
    """How the factors lie; what they are comes with the first question, as all weights do."""


def layers_of(
    encoder: SentenceTransformer,
    texts: Sequence[str],
    layers: int,
    *,
    ranks: Ranks | None,
    on_text: OnText,
    low_rank: LoraConfig | None = None,
    factors: Factors | None = None,
) -> Layers:
    """The encoder's upper layers, on all ranks there are; ``low_rank`` and ``factors`` as in ``UpperLayers``."""
    if ranks is None:
        return UpperLayers(encoder, texts, layers, low_rank=low_rank, factors=factors, on_text=on_text)
    return SpreadLayers(encoder, texts, layers, ranks=ranks, low_rank=low_rank, factors=factors, on_text=on_text)


class SpreadLayers:
    """``UpperLayers`` over all ranks, as rank 0 has them. Of one ``embed`` at a time the gradients are known."""

    def __init__(
        self,
        encoder: SentenceTransformer,
        texts: Sequence[str],
        layers: int,
        *,
        ranks: Ranks,
        low_rank: LoraConfig | None = None,
        factors: Factors | None = None,
        on_text: OnText,
    ) -> None:
        self._ranks = ranks
        self._texts = len(texts)
        self._owner, self._number = dealt(texts, ranks.place.world)
        self._dimension = int(encoder.get_embedding_dimension() or 0)
        self._open(encoder, texts, layers, low_rank)
        self._own = UpperLayers(
            encoder, self._held_by(0, texts), layers, low_rank=low_rank, factors=factors, on_text=on_text
        )
        self.parameters = self._own.parameters
        self._told = self._asked = False
        """Whether the others have the weights as they are, and whether they hold a part of the gradient."""
        self._inside = ExitStack()

    def __enter__(self) -> SpreadLayers:
        with ExitStack() as inside:
            inside.push(self._close)
            inside.enter_context(self._ranks.own_share_of_cores())
            inside.enter_context(self._own)
            self._inside = inside.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._inside.__exit__(kind, error, trace)

    def embed(self, rows: Sequence[int] | Indexes) -> torch.Tensor:
        """As ``UpperLayers.embed``."""
        distinct, at = np.unique(np.asarray(rows, dtype=np.int64), return_inverse=True)
        owned = self._owner[distinct] == 0
        own, others = np.flatnonzero(owned), np.flatnonzero(~owned)
        if len(others):
            self._ask(distinct)
        parts = [self._own.embed(self._number[distinct[own]])] if len(own) else []
        if len(others):
            parts.append(self._answer(others, len(distinct)))
        order = np.argsort(np.concatenate([own, others]), kind="stable")
        return torch.cat(parts)[torch.from_numpy(order[at])]

    def vectors(self) -> Vectors:
        """As ``UpperLayers.vectors``."""
        return all_vectors(self, self._texts)

    def complete_gradients(self) -> None:
        """Add to the parameters' gradients what the other ranks have of them."""
        if self._asked:
            total = packed_gradients(self.parameters).to(self._ranks.wire)
            with self._ranks.saying(Say.GRADIENTS):
                self._ranks.add_up(total)
            unpack_gradients(total, self.parameters)
        self._asked = self._told = False

    def _close(self, _: object, error: BaseException | None, __: object) -> None:
        # Of two errors the first tells what happened.
        with suppress(*(() if error is None else (RankLostError,))), self._ranks.saying(Say.CLOSE):
            pass

    def factors(self) -> Factors:
        """As ``Layers`` has it."""
        return self._own.factors()

    def _open(
        self, encoder: SentenceTransformer, texts: Sequence[str], layers: int, low_rank: LoraConfig | None
    ) -> None:
        with tempfile.TemporaryDirectory() as folder:
            encoder.save_pretrained(folder, create_model_card=False)
            paths = sorted(path for path in Path(folder).rglob("*") if path.is_file())
            names = [path.relative_to(folder).as_posix() for path in paths]
            opening = msgspec.json.encode(_Opening(layers, encoder.max_seq_length, names, low_rank))
            with self._ranks.saying(Say.OPEN):
                for rank in range(1, self._ranks.place.world):
                    self._ranks.send(opening, rank)
                    for path in paths:
                        self._ranks.send(path.read_bytes(), rank)
                    self._ranks.send(msgspec.json.encode(self._held_by(rank, texts)), rank)

    def _held_by(self, rank: int, texts: Sequence[str]) -> list[str]:
        return [text for text, owner in zip(texts, self._owner.tolist(), strict=True) if owner == rank]

    def _ask(self, distinct: Indexes) -> None:
        """Have the others embed what they hold of these texts; the answer is fetched later."""
        with_gradient = torch.is_grad_enabled()
        with self._ranks.saying(Say.EMBED, len(distinct), int(with_gradient), int(not self._told)):
            wanted = np.stack([self._owner[distinct], self._number[distinct]])
            self._ranks.share(torch.from_numpy(wanted))
            if not self._told:
                weights = parameters_to_vector(self.parameters).detach()
                self._ranks.share(weights.to(self._ranks.wire))
        self._told = True

    def _answer(self, others: Indexes, count: int) -> torch.Tensor:
        """(others, dim): their vectors, which hand their gradient on."""
        answer = torch.zeros(count, self._dimension, device=self._ranks.wire)
        with self._ranks.saying(Say.ANSWER):
            self._ranks.add_up(answer)
        found = answer[torch.from_numpy(others)].to(self._own.encoder.device)
        if not torch.is_grad_enabled():
            return found

        def hand_on(gradient: torch.Tensor) -> None:
            whole = torch.zeros(count, self._dimension, device=self._ranks.wire)
            whole[torch.from_numpy(others)] = gradient.to(whole)
            with self._ranks.saying(Say.BACK):
                self._ranks.share(whole)
            self._asked = True

        found.requires_grad_().register_hook(hand_on)  # type: ignore[no-untyped-call]
        return found


class _Share:
    """What another rank holds of a training, and does when it is asked."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        opening = msgspec.json.decode(ranks.receive(), type=_Opening)
        with tempfile.TemporaryDirectory() as folder:
            for name in opening.files:
                path = Path(folder) / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(ranks.receive())
            texts = msgspec.json.decode(ranks.receive(), type=list[str])
            encoder = load_encoder(Path(folder), ranks.device).eval()
        encoder.max_seq_length = opening.most_tokens
        self._dimension = int(encoder.get_embedding_dimension() or 0)
        self._upper = UpperLayers(encoder, texts, opening.layers, low_rank=opening.low_rank)
        self._upper.__enter__()
        self._mine = np.zeros(0, dtype=np.int64)
        self._made: torch.Tensor | None = None
        self._answer = torch.zeros(0)

    def do(self, what: Say, numbers: Sequence[int]) -> None:
        match what:
            case Say.EMBED:
                self._embed(numbers[0], with_gradient=bool(numbers[1]), with_weights=bool(numbers[2]))
            case Say.ANSWER:
                self._ranks.add_up(self._answer)
            case Say.BACK:
                self._back()
            case Say.GRADIENTS:
                self._gradients()

    def _embed(self, count: int, *, with_gradient: bool, with_weights: bool) -> None:
        wanted = torch.zeros(2, count, dtype=torch.int64)
        self._ranks.share(wanted)
        if with_weights:
            weights = parameters_to_vector(self._upper.parameters).detach().to(self._ranks.wire)
            self._ranks.share(weights)
            vector_to_parameters(weights.to(self._upper.encoder.device), self._upper.parameters)
        owner, number = wanted.numpy()
        self._mine = np.flatnonzero(owner == self._ranks.place.rank)
        self._answer = torch.zeros(count, self._dimension, device=self._ranks.wire)
        self._made = None
        if len(self._mine):
            with torch.set_grad_enabled(with_gradient):
                self._made = self._upper.embed(number[self._mine])
            self._answer[torch.from_numpy(self._mine)] = self._made.detach().to(self._answer)

    def _back(self) -> None:
        gradient = torch.zeros_like(self._answer)
        self._ranks.share(gradient)
        if self._made is not None:
            self._made.backward(gradient[torch.from_numpy(self._mine)].to(self._made))  # type: ignore[no-untyped-call]
        self._made = None

    def _gradients(self) -> None:
        self._ranks.add_up(packed_gradients(self._upper.parameters).to(self._ranks.wire))
        for parameter in self._upper.parameters:
            parameter.grad = None


def follow(ranks: Ranks) -> None:
    """Do what rank 0 says until it ends. Raises RankLostError where it is gone without a word."""
    share: _Share | None = None
    while True:
        what, numbers = ranks.hear()
        if what is Say.END:
            return
        if what in (Say.OPEN, Say.CLOSE):
            share = None  # its memory goes before the next one's comes
        if what is Say.OPEN:
            share = _Share(ranks)
        elif share is not None:
            share.do(what, numbers)


def dealt(texts: Sequence[str], world: int) -> tuple[Indexes, Indexes]:
    """Each text's rank, and its number among those that the rank holds. Ranks get texts of like lengths."""
    order = np.argsort([len(text) for text in texts], kind="stable")
    owner = np.empty(len(texts), dtype=np.int64)
    owner[order] = np.arange(len(texts)) % world
    number = np.empty(len(texts), dtype=np.int64)
    for rank in range(world):
        held = owner == rank
        number[held] = np.arange(held.sum())
    return owner, number


def packed_gradients(parameters: Sequence[torch.nn.Parameter]) -> torch.Tensor:
    """All gradients in a row, and for each parameter whether it has one: to have none is not to have zeros, for an
    optimizer leaves such a parameter alone."""
    known = [p.grad is not None for p in parameters]
    parts = [torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in parameters]
    return torch.cat([*parts, torch.tensor(known, dtype=parts[0].dtype, device=parts[0].device)])


def unpack_gradients(packed: torch.Tensor, parameters: Sequence[torch.nn.Parameter]) -> None:
    known = packed[len(packed) - len(parameters) :].tolist()
    start = 0
    for parameter, there in zip(parameters, known, strict=True):
        part = packed[start : start + parameter.numel()]
        parameter.grad = part.view_as(parameter).to(parameter.device) if there else None
        start += parameter.numel()
