"""The trainer computes in bf16 where the processor has it. Tests that compare numbers say which they mean."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch

from trainer.model import fast_bf16

PRECISIONS = ("float32", "bf16") if fast_bf16(torch.device("cpu")) else ("float32",)
"""That the trainer computes in here; in software bf16 is slow, and rounds in other places."""


@contextmanager
def computing_in(precision: str) -> Iterator[None]:
    """``float32``, or ``bf16``, be it in software."""
    with patch("trainer.model.fast_bf16", lambda _: precision == "bf16"):
        yield
