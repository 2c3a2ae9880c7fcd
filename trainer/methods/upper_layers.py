"""Training only the last layers of an encoder, without running the frozen ones again for every step.

What the frozen layers make of a text never changes, so it is computed once and kept. In training, texts pass
through the frozen layers untouched, and what was kept is put in at the first trained layer. That needs no
knowledge of the architecture beyond its stack of layers, so it works for any transformer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from sentence_transformers import SentenceTransformer

from trainer.model import autocast

MOST_CACHED = 1 << 30
"""Bytes of kept activations; texts that would need more run through the frozen layers every time."""
_BATCH = 64


class UpperLayers:
    """The last ``layers`` layers of ``encoder``, trainable, for a fixed list of texts.

    Use it as a context manager: inside, the encoder's frozen layers are out of order for anyone else.
    """

    def __init__(self, encoder: SentenceTransformer, texts: Sequence[str], layers: int) -> None:
        self.encoder = encoder
        self._texts = list(texts)
        stack = layer_stack(encoder)
        self._stack = stack if stack is not None and len(stack) > layers else None
        self._first = len(stack) - layers if stack is not None else 0
        self._kept: list[torch.Tensor] = []
        self._frozen: list[torch.nn.Module] = []
        self._hidden: torch.Tensor | None = None
        self._hook: Any = None
        encoder.requires_grad_(self._stack is None)
        if self._stack is not None:
            for layer in list(self._stack)[self._first :]:
                layer.requires_grad_(True)
        self.parameters = [p for p in encoder.parameters() if p.requires_grad]

    def __enter__(self) -> UpperLayers:
        if self._stack is not None:
            self._keep(self._stack)
        return self

    def __exit__(self, *_: object) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None
        if self._frozen and self._stack is not None:
            for number, layer in enumerate(self._frozen):
                self._stack[number] = layer
        self._frozen, self._kept = [], []
        self.encoder.requires_grad_(True)

    def embed(self, rows: Sequence[int]) -> torch.Tensor:
        """(n, dim) float32, normalised, with gradients, of the texts with these numbers."""
        features = self._features(rows)
        if self._kept:
            length = features["attention_mask"].shape[1]
            self._hidden = torch.stack(
                [F.pad(self._kept[i], (0, 0, 0, length - len(self._kept[i]))) for i in rows]
            )
        with autocast(self.encoder.device):
            vectors = self.encoder(features)["sentence_embedding"]
        return F.normalize(vectors.float(), dim=1)

    def _features(self, rows: Sequence[int]) -> dict[str, Any]:
        features = self.encoder.preprocess([self._texts[i] for i in rows])
        device = self.encoder.device
        return {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in features.items()}

    def _keep(self, stack: torch.nn.ModuleList) -> None:
        """Run every text through the frozen layers once, then take them out of the way."""
        seen: list[torch.Tensor] = []
        returns_tuple = False

        def capture(_: torch.nn.Module, __: tuple[Any, ...], output: Any) -> None:
            nonlocal returns_tuple
            returns_tuple = isinstance(output, tuple)
            seen.append(output[0] if returns_tuple else output)

        hook = stack[self._first - 1].register_forward_hook(capture)
        order = sorted(range(len(self._texts)), key=lambda i: len(self._texts[i]))
        kept: dict[int, torch.Tensor] = {}
        size = 0
        with torch.no_grad():
            for start in range(0, len(order), _BATCH):
                rows = order[start : start + _BATCH]
                features = self._features(rows)
                with autocast(self.encoder.device):
                    self.encoder(features)
                hidden, lengths = seen.pop(), features["attention_mask"].sum(dim=1).tolist()
                for row, text, length in zip(rows, hidden, lengths, strict=True):
                    kept[row] = text[: int(length)].clone()
                    size += kept[row].nbytes
                if size > MOST_CACHED:
                    break
        hook.remove()
        if len(kept) < len(order):
            return
        self._kept = [kept[i] for i in range(len(self._texts))]
        self._frozen = [stack[i] for i in range(self._first)]
        for number in range(self._first):
            stack[number] = _PassThrough(returns_tuple)
        self._hook = stack[self._first].register_forward_pre_hook(self._put_in, with_kwargs=True)

    def _put_in(
        self, _: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if self._hidden is None:
            return args, kwargs
        if args:
            return (self._hidden, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": self._hidden}


class _PassThrough(torch.nn.Module):
    """Stands in for a frozen layer."""

    def __init__(self, returns_tuple: bool) -> None:
        super().__init__()
        self._returns_tuple = returns_tuple

    def forward(self, hidden_states: torch.Tensor, *_: Any, **__: Any) -> Any:
        return (hidden_states,) if self._returns_tuple else hidden_states


def layer_stack(encoder: SentenceTransformer) -> torch.nn.ModuleList | None:
    """The transformer's layers: the longest list of modules of one class, or None where there is none."""
    stacks = [
        module
        for module in encoder.modules()
        if isinstance(module, torch.nn.ModuleList) and len(module) > 1 and len({type(m) for m in module}) == 1
    ]
    return max(stacks, key=len, default=None)
