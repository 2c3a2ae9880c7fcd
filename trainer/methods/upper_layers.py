"""Training the last layers of an encoder, fast: no work on padding, and none done twice.

What the frozen layers make of a text never changes, so it is computed once and kept. In training, texts pass
through the frozen layers untouched, and what was kept is put in at the first trained layer. That needs no
knowledge of the architecture beyond its stack of layers, so it works for any transformer.

Texts are tokenised once. A batch runs in groups of texts of about one length, so that hardly a token is padding
whatever the batch is made of, and a text that is in it twice runs once. On a CPU it is dealt to workers
(trainer/workers.py).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer

from clickloop import lora
from clickloop.errors import TrainingError
from clickloop.lora import LoraConfig
from trainer.model import Vectors, autocast, transformer_of
from trainer.workers import Workers

Indexes = NDArray[np.int64]
OnText = Callable[[int, int], None]
Factors = dict[str, torch.Tensor]
"""Of low-rank changes, by the names that peft gives them."""

MOST_CACHED = 1 << 30
"""Bytes of kept activations; texts that would need more run through the frozen layers every time."""
_BATCH = 64
LEAST_PARTS = 2
"""Texts for each worker, or one worker does them all."""
MOST_PADDING = 0.15
"""Share of a group's tokens that may be padding before it is split."""


class Layers(Protocol):
    """Layers to train, for a fixed list of texts: in this process alone, or on several (spread.py)."""

    parameters: list[torch.nn.Parameter]

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def embed(self, rows: Sequence[int] | Indexes) -> torch.Tensor: ...

    def vectors(self) -> Vectors: ...

    def complete_gradients(self) -> None:
        """To be called after each ``backward``."""
        ...

    def factors(self) -> Factors:
        """Of the low-rank changes, as they are now; empty where the layers themselves are trained."""
        ...


class UpperLayers:
    """The last ``layers`` layers of ``encoder``, trainable, for a fixed list of texts.

    Use it as a context manager: inside, the encoder's frozen layers are out of order for anyone else. ``on_text``
    is told how many texts the frozen layers have seen, and of how many. With ``low_rank``, changes of these layers
    are trained instead, beginning with ``factors``; the encoder keeps them.
    """

    def __init__(
        self,
        encoder: SentenceTransformer,
        texts: Sequence[str],
        layers: int,
        *,
        low_rank: LoraConfig | None = None,
        factors: Factors | None = None,
        on_text: OnText = lambda _, __: None,
    ) -> None:
        self.encoder = encoder
        self._texts = list(texts)
        self._on_text = on_text
        stack = layer_stack(encoder)
        self._stack = stack if stack is not None and len(stack) > layers else None
        self._first = len(stack) - layers if stack is not None else 0
        self._tokens = _Tokens(encoder, self._texts)
        self._kept: list[torch.Tensor] = []
        self._frozen: list[torch.nn.Module] = []
        self._hidden = threading.local()
        """``of``: what the frozen layers have made of the group that this thread runs."""
        self.workers = Workers(encoder.device)
        self._inside = ExitStack()
        self._hook: Any = None
        encoder.requires_grad_(self._stack is None and low_rank is None)
        self._changes: Any = None
        if low_rank is not None:
            self._changes = lora.inject(transformer_of(encoder), low_rank, factors)
        elif self._stack is not None:
            for layer in list(self._stack)[self._first :]:
                layer.requires_grad_(True)
        self.parameters = [p for p in encoder.parameters() if p.requires_grad]

    def __enter__(self) -> UpperLayers:
        with ExitStack() as inside:
            inside.enter_context(self.workers)
            if self._stack is not None:
                self._keep(self._stack)
            self._inside = inside.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._inside.close()
        if self._hook is not None:
            self._hook.remove()
            self._hook = None
        if self._frozen and self._stack is not None:
            for number, layer in enumerate(self._frozen):
                self._stack[number] = layer
        self._frozen, self._kept = [], []
        self.encoder.requires_grad_(True)

    def embed(self, rows: Sequence[int] | Indexes) -> torch.Tensor:
        """(n, dim) float32, normalised, with gradients, of the texts with these numbers."""
        distinct, place = np.unique(np.asarray(rows, dtype=np.int64), return_inverse=True)
        order = distinct[np.argsort(self._tokens.lengths[distinct], kind="stable")]
        count = self.workers.count
        if count == 1 or len(order) < LEAST_PARTS * count:
            vectors = self._part(order)
        else:
            parts = [order[number::count] for number in range(count)]
            order = np.concatenate(parts)
            if torch.is_grad_enabled():
                vectors = _InParts.apply(self, parts, *self.parameters)  # type: ignore[no-untyped-call]
            else:
                vectors = torch.cat([*self.workers.each(self._part_without_gradients, parts)])
        of_distinct = np.argsort(order, kind="stable")
        return vectors[torch.from_numpy(of_distinct[place])]

    def vectors(self) -> Vectors:
        """(texts, dim) float32, normalised: what all texts are now."""
        return all_vectors(self, len(self._texts))

    def complete_gradients(self) -> None:
        """They are: all the texts are here."""

    def factors(self) -> Factors:
        """As ``Layers`` has it."""
        return lora.factors(self._changes) if self._changes is not None else {}

    def part(self, rows: Indexes) -> torch.Tensor:
        """(n, dim) of texts ordered by length, in this thread, with gradients."""
        with torch.enable_grad():
            return self._part(rows)

    def _part_without_gradients(self, rows: Indexes) -> torch.Tensor:
        with torch.no_grad():
            return self._part(rows)

    def _part(self, rows: Indexes) -> torch.Tensor:
        return torch.cat([self._run(group) for group in groups(rows, self._tokens.lengths[rows])])

    def _run(self, rows: Indexes) -> torch.Tensor:
        features = self._tokens.features(rows)
        if self._kept:
            length = features["attention_mask"].shape[1]
            self._hidden.of = torch.stack(
                [F.pad(self._kept[i], (0, 0, 0, length - len(self._kept[i]))) for i in rows]
            )
        with autocast(self.encoder.device):
            vectors = self.encoder(features)["sentence_embedding"]
        return F.normalize(vectors.float(), dim=1)

    def _keep(self, stack: torch.nn.ModuleList) -> None:
        """Run every text through the frozen layers once, then take them out of the way."""
        seen = threading.local()
        returns_tuple = False

        def capture(_: torch.nn.Module, __: tuple[Any, ...], output: Any) -> None:
            nonlocal returns_tuple
            returns_tuple = isinstance(output, tuple)
            seen.hidden = output[0] if returns_tuple else output
            raise _EnoughError

        def frozen(rows: Indexes) -> dict[int, torch.Tensor]:
            features = self._tokens.features(rows)
            with torch.no_grad(), autocast(self.encoder.device), suppress(_EnoughError):
                self.encoder(features)
            lengths = features["attention_mask"].sum(dim=1).tolist()
            found = zip(rows.tolist(), seen.hidden, lengths, strict=True)
            return {row: text[: int(length)].clone() for row, text, length in found}

        order = np.argsort(self._tokens.lengths, kind="stable")
        batches = [order[start : start + _BATCH] for start in range(0, len(order), _BATCH)]
        kept: dict[int, torch.Tensor] = {}
        hook = stack[self._first - 1].register_forward_hook(capture)
        try:
            for of_batch in self.workers.each(frozen, batches):
                kept |= of_batch
                token = next(iter(of_batch.values()))[0]
                if int(self._tokens.lengths.sum()) * token.numel() * token.element_size() > MOST_CACHED:
                    return
                self._on_text(len(kept), len(order))
        finally:
            hook.remove()
        self._kept = [kept[i] for i in range(len(self._texts))]
        self._frozen = [stack[i] for i in range(self._first)]
        for number in range(self._first):
            stack[number] = _PassThrough(returns_tuple)
        self._hook = stack[self._first].register_forward_pre_hook(self._put_in, with_kwargs=True)

    def _put_in(
        self, _: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        hidden = getattr(self._hidden, "of", None)
        if hidden is None:
            return args, kwargs
        if args:
            return (hidden, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": hidden}


class _InParts(torch.autograd.Function):
    """The vectors of several parts of a batch, forwards and backwards on a thread for each.

    The parameters' gradients are added up in the order of the parts, so that they are the same in every run.
    """

    @staticmethod
    def forward(ctx: Any, layers: UpperLayers, parts: list[Indexes], *parameters: torch.Tensor) -> torch.Tensor:
        ctx.layers, ctx.parameters = layers, parameters
        ctx.vectors = [*layers.workers.each(layers.part, parts)]
        return torch.cat([vectors.detach() for vectors in ctx.vectors])

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[Any, ...]:
        vectors, ctx.vectors = ctx.vectors, None

        def back(part: torch.Tensor, gradient: torch.Tensor) -> Sequence[torch.Tensor | None]:
            found: tuple[torch.Tensor | None, ...] = torch.autograd.grad(
                part, ctx.parameters, gradient, allow_unused=True
            )
            return found

        of_vectors = torch.split(gradients[0], [len(part) for part in vectors])
        of_parts = ctx.layers.workers.each(back, vectors, of_vectors)
        return None, None, *(_added(of_one) for of_one in zip(*of_parts, strict=True))


def _added(gradients: Sequence[torch.Tensor | None]) -> torch.Tensor | None:
    known = [gradient for gradient in gradients if gradient is not None]
    return sum(known[1:], known[0]) if known else None


class _EnoughError(Exception):
    """Ends a forward pass after the last layer that is of interest."""


class _PassThrough(torch.nn.Module):
    """Stands in for a frozen layer."""

    def __init__(self, returns_tuple: bool) -> None:
        super().__init__()
        self._returns_tuple = returns_tuple

    def forward(self, hidden_states: torch.Tensor, *_: Any, **__: Any) -> Any:
        return (hidden_states,) if self._returns_tuple else hidden_states


class _Tokens:
    """The texts as the encoder reads them, tokenised once where they are rows of tokens with a mask."""

    def __init__(self, encoder: SentenceTransformer, texts: list[str]) -> None:
        self._encoder = encoder
        self._texts = texts
        self._padding = int(getattr(encoder.tokenizer, "pad_token_id", 0) or 0)
        self._rows: dict[int, dict[str, torch.Tensor]] = {}
        self._constants: dict[str, Any] = {}
        self.lengths: Indexes = np.asarray([len(text) for text in texts], dtype=np.int64)
        order = np.argsort(self.lengths, kind="stable")
        for start in range(0, len(order), _BATCH):
            block = order[start : start + _BATCH].tolist()
            features = encoder.preprocess([texts[i] for i in block])
            mask = features.get("attention_mask")
            tensors = {k: v for k, v in features.items() if isinstance(v, torch.Tensor)}
            if mask is None or not mask[:, 0].all() or any(v.shape != mask.shape for v in tensors.values()):
                self._rows = {}
                return
            self._constants = {k: v for k, v in features.items() if not isinstance(v, torch.Tensor)}
            for at, (row, length) in enumerate(zip(block, mask.sum(dim=1).tolist(), strict=True)):
                self._rows[row] = {k: v[at, :length].clone() for k, v in tensors.items()}
        if self._rows:
            self.lengths = np.asarray(
                [len(self._rows[i]["attention_mask"]) for i in range(len(texts))], dtype=np.int64
            )

    def features(self, rows: Indexes) -> dict[str, Any]:
        """A padded batch on the encoder's device."""
        device = self._encoder.device
        if not self._rows:
            features = self._encoder.preprocess([self._texts[i] for i in rows])
            return {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in features.items()}
        found = [self._rows[int(i)] for i in rows]
        return self._constants | {
            name: torch.nn.utils.rnn.pad_sequence(
                [row[name] for row in found],
                batch_first=True,
                padding_value=self._padding if name == "input_ids" else 0,
            ).to(device)
            for name in found[0]
        }


def all_vectors(layers: Layers, texts: int) -> Vectors:
    """(texts, dim) float32, normalised."""
    return vectors_of(layers, np.arange(texts))


def vectors_of(layers: Layers, rows: Indexes) -> Vectors:
    """(n, dim) float32, normalised, without gradients."""
    with torch.no_grad():
        blocks = [rows[start : start + 512] for start in range(0, len(rows), 512)]
        return torch.cat([layers.embed(block) for block in blocks]).cpu().numpy()


def groups(rows: Indexes, lengths: Indexes) -> Iterator[Indexes]:
    """Split rows, ordered by their ``lengths``, so that none has more than MOST_PADDING of padding."""
    start = tokens = 0
    for end, length in enumerate(lengths.tolist(), start=1):
        tokens += length
        if end - start > 1 and tokens < (1.0 - MOST_PADDING) * length * (end - start):
            yield rows[start : end - 1]
            start, tokens = end - 1, length
    if len(rows) > start:
        yield rows[start:]


def layer_stack(encoder: SentenceTransformer) -> torch.nn.ModuleList | None:
    """The transformer's layers: the longest list of modules of one class, or None where there is none."""
    stacks = [
        module
        for module in encoder.modules()
        if isinstance(module, torch.nn.ModuleList) and len(module) > 1 and len({type(m) for m in module}) == 1
    ]
    return max(stacks, key=len, default=None)


def trained_layers(encoder: SentenceTransformer, share: float) -> int:
    """How many layers the upper ``share`` of the encoder's are, at least one."""
    return max(1, round(share * len(layer_stack(encoder) or ())))


def low_rank_of(encoder: SentenceTransformer, layers: int, rank: int) -> LoraConfig:
    """Changes of all linear maps in the last ``layers`` layers. Raises TrainingError where there are none."""
    stack = layer_stack(encoder)
    within = {id(module) for layer in list(stack or ())[-layers:] for module in layer.modules()}
    found = [
        name
        for name, module in transformer_of(encoder).named_modules()
        if isinstance(module, torch.nn.Linear) and (stack is None or id(module) in within)
    ]
    if not found:
        raise TrainingError("the encoder has no linear layers that low-rank changes could be made to")
    return lora.config_of(rank, found)
