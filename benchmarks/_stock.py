"""Train with the stock ``SentenceTransformerTrainer``: its default settings, MultipleNegativesRankingLoss, fp32.

    python -m benchmarks._stock JOB.json

A process of its own: the trainer needs packages that Clickloop doesn't, and they lie in a folder of their own.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any


def train(job: dict[str, Any]) -> dict[str, float]:
    """Save the trained model to ``job["output"]``; returns its seconds and steps."""
    import torch
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
    from sentence_transformers import SentenceTransformerTrainingArguments as Arguments
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    torch.set_num_threads(job["threads"])
    model = SentenceTransformer(job["model"], device="cpu", local_files_only=True)
    arguments = Arguments(
        output_dir=job["scratch"],
        num_train_epochs=job["epochs"],
        seed=job["seed"],
        use_cpu=True,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    pairs = Dataset.from_dict({"anchor": job["queries"], "positive": job["documents"]})
    trainer = SentenceTransformerTrainer(
        model, arguments, train_dataset=pairs, loss=MultipleNegativesRankingLoss(model)
    )
    started = time.monotonic()
    trainer.train()
    seconds = time.monotonic() - started
    model.save_pretrained(job["output"], create_model_card=False)
    return {"seconds": seconds, "steps": float(trainer.state.global_step)}


if __name__ == "__main__":
    job = json.loads(Path(sys.argv[1]).read_text())
    Path(job["result"]).write_text(json.dumps(train(job)))
