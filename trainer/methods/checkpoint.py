"""Training that survives its process: everything that is needed to go on, in one file, now and then.

What goes on is bit for bit what would have gone on without the interruption: weights, the optimizer's state and
the step. Batches depend on the seed and the epoch alone, so the step tells which come next.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from clickloop.logs import logger

EVERY_SECONDS = 20.0


@dataclass
class Checkpoint:
    """One file for one training, e.g. of a rung at one moment. ``identity`` says what it is that is trained."""

    path: Path
    identity: str
    now: Callable[[], float] = time.monotonic
    _saved_at: float = field(init=False)
    _refused: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        self._saved_at = self.now()

    def for_training(self, *facts: object) -> Checkpoint:
        """The same file, fit for a training only where these facts are the same, too."""
        return Checkpoint(self.path, digest(self.identity, *facts), self.now)

    def another(self, number: int) -> Checkpoint:
        """For one more training of the same thing, in a file of its own."""
        path = self.path.with_stem(f"{self.path.stem}-{number}")
        return Checkpoint(path, digest(self.identity, number), self.now)

    def due(self) -> bool:
        return self.now() - self._saved_at >= EVERY_SECONDS

    def save(self, tensors: Mapping[str, torch.Tensor], counts: Mapping[str, int]) -> None:
        """Replaces the file in one move, so that at any instant a whole one is there.

        Where there is no room for it, the training goes on without.
        """
        temporary = self.path.with_suffix(".tmp")
        metadata = {"identity": self.identity, "counts": json.dumps(dict(counts))}
        whole = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            save_file(whole, temporary, metadata=metadata)
            temporary.replace(self.path)
        except (SafetensorError, OSError) as error:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            if not self._refused:
                logger().warning("no checkpoint kept", path=str(self.path), reason=str(error))
            self._refused = True
        self._saved_at = self.now()

    def load(self) -> tuple[dict[str, torch.Tensor], dict[str, int]] | None:
        """What was saved, or nothing: a file that can't be read, or is of another training, is thrown away."""
        if not self.path.is_file():
            return None
        try:
            with safe_open(self.path, framework="pt") as saved:
                metadata = saved.metadata() or {}
                if metadata.get("identity") == self.identity:
                    return {name: saved.get_tensor(name) for name in list(saved.keys())}, json.loads(
                        metadata["counts"]
                    )
            reason = "it is of another training"
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            reason = f"it can't be read: {error}"
        logger().warning("checkpoint thrown away", path=str(self.path), reason=reason)
        self.path.unlink(missing_ok=True)
        return None


class Checkpoints:
    """The checkpoints of the version in the making, ``work_dir/checkpoints/INDEX/VERSION/``; of the index' others
    none is kept."""

    def __init__(self, work_dir: Path, index: str, version: str) -> None:
        self._folder = self.folder(work_dir, index, version)
        for other in self._folder.parent.glob("*"):
            if other.name != version:
                shutil.rmtree(other, ignore_errors=True)

    @staticmethod
    def folder(work_dir: Path, index: str, version: str) -> Path:
        return work_dir / "checkpoints" / index / version

    @staticmethod
    def remove_folder(folder: Path) -> None:
        """And that of the index, where no other is left in it."""
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):
            folder.parent.rmdir()

    def of(self, name: str, *facts: object) -> Checkpoint:
        return Checkpoint(self._folder / f"{name}.safetensors", digest(*facts))

    def remove(self) -> None:
        self.remove_folder(self._folder)


def digest(*facts: object) -> str:
    """One name for all the facts: bytes, and whatever says all about itself as text."""
    found = hashlib.blake2b(digest_size=16)
    for fact in facts:
        raw = fact if isinstance(fact, bytes) else repr(fact).encode()
        found.update(len(raw).to_bytes(8, "big") + raw)
    return found.hexdigest()


def state_of(
    parameters: Iterable[torch.nn.Parameter | torch.Tensor], optimizer: torch.optim.Optimizer
) -> dict[str, torch.Tensor]:
    """The parameters and what the optimizer knows of each, by name."""
    found: dict[str, torch.Tensor] = {}
    for number, parameter in enumerate(parameters):
        found[f"{number}/value"] = parameter
        for name, value in optimizer.state.get(parameter, {}).items():
            found[f"{number}/state/{name}"] = torch.as_tensor(value)
    return found


def restore(
    tensors: Mapping[str, torch.Tensor],
    parameters: Iterable[torch.nn.Parameter | torch.Tensor],
    optimizer: torch.optim.Optimizer,
) -> None:
    """What ``state_of`` named, back where it was."""
    with torch.no_grad():
        for number, parameter in enumerate(parameters):
            parameter.copy_(tensors[f"{number}/value"])
            start = f"{number}/state/"
            state = {name.removeprefix(start): t for name, t in tensors.items() if name.startswith(start)}
            if state:
                optimizer.state[parameter] = {
                    name: value if name == "step" else value.to(parameter.device) for name, value in state.items()
                }
