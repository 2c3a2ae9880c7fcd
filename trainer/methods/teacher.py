"""A larger model that training learns from: how far it has one document ahead of another for a query.

MarginMSE (Hofstätter et al. 2020): the student learns the teacher's lead, not its scores, so that the two need not
agree on what a score is. Leads are of cosines, or of a cross-encoder's scores through a sigmoid, and so of about
the student's size.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from sentence_transformers import CrossEncoder

from clickloop.base_model import base_model_folder
from clickloop.errors import ArtifactError, SettingsError
from trainer.dataset import Floats, Indexes
from trainer.methods.pairs import Pairs
from trainer.methods.upper_layers import OnText
from trainer.model import encode, load_encoder

PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle")
CROSS_ENCODER = "cross-encoder:"
"""How the setting begins where it names one."""


class Teacher(Protocol):
    def scores(self, queries: Indexes, documents: Indexes) -> Floats:
        """(n,) of pairs, by numbers of the texts that the teacher was given."""
        ...


class BiEncoderTeacher:
    """Cosines of a larger encoder's vectors, each text encoded once."""

    def __init__(self, name: str, texts: Sequence[str], device: torch.device, on_text: OnText) -> None:
        try:
            encoder = load_encoder(base_model_folder(name), str(device))
        except (SettingsError, ArtifactError) as error:
            said = str(error).removeprefix("base_model ")
            raise SettingsError(f"setting full_teacher: {said}") from None
        self._vectors = encode(encoder, texts, on_batch=lambda done: on_text(done, len(texts)))

    def scores(self, queries: Indexes, documents: Indexes) -> Floats:
        found: Floats = (self._vectors[queries] * self._vectors[documents]).sum(axis=1)
        return found


class CrossEncoderTeacher:
    """Scores of query and document read together.

    Nothing is kept from one batch for another: a score's last bits hang on what it is padded with, and a training
    that is resumed must see the same.
    """

    def __init__(self, name: str, texts: Sequence[str], device: torch.device) -> None:
        self._texts = texts
        named = f"setting full_teacher: {CROSS_ENCODER}{name}"
        try:
            folder = (
                Path(name) if Path(name).is_dir() else Path(snapshot_download(name, ignore_patterns=list(PICKLED)))
            )
            if any(found for pattern in PICKLED for found in folder.rglob(pattern)):
                raise ValueError("it holds weights that are no safetensors, and nothing is unpickled")
            self._model = CrossEncoder(
                str(folder),
                device=str(device),
                local_files_only=True,
                model_kwargs={"use_safetensors": True},
            )
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            reason = str(error).strip().split("\n", 1)[0]
            raise SettingsError(f"{named} can't be loaded: {reason}") from None
        if self._model.num_labels != 1:
            raise SettingsError(f"{named} gives a pair {self._model.num_labels} scores, and one is needed")

    def scores(self, queries: Indexes, documents: Indexes) -> Floats:
        pairs = zip(queries.tolist(), documents.tolist(), strict=True)
        found = self._model.predict(
            [(self._texts[query], self._texts[document]) for query, document in pairs],
            activation_fn=torch.nn.Sigmoid(),
            show_progress_bar=False,
        )
        return np.asarray(found, dtype=np.float32)


def teacher_of(name: str, texts: Sequence[str], device: torch.device, *, on_text: OnText) -> Teacher:
    """The teacher that ``full_teacher`` names, a model's name or folder, for these texts. Raises SettingsError."""
    if name.startswith(CROSS_ENCODER):
        return CrossEncoderTeacher(name.removeprefix(CROSS_ENCODER), texts, device)
    return BiEncoderTeacher(name, texts, device, on_text)


def leads(teacher: Teacher, pairs: Pairs, rows: Indexes) -> Floats:
    """(n,) of the rows' documents over their first hard negatives; 0 where there is none."""
    asked = pairs.asked[rows]
    ahead = teacher.scores(asked, pairs.found[rows]) - teacher.scores(asked, np.maximum(pairs.hard[rows, 0], 0))
    return np.where(pairs.hard[rows, 0] >= 0, ahead, 0.0).astype(np.float32)
