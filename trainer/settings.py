"""What a user may want to change about training. Thresholds of the gate are policy, so they are settings."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal, Self

from pydantic import Field, SecretStr, model_validator

from clickloop.propensity import Correction
from clickloop.settings import MAX_SEED
from trainer.rung_settings import RungSettings


class TrainerSettings(RungSettings):
    """Settings of ``clickloop trainer``; the TOML table is ``[trainer]``."""

    table: ClassVar[str] = "trainer"

    work_dir: Path = Field(
        Path(".clickloop/trainer"), description="folder for downloaded parents and artifacts in the making"
    )
    device: str = Field(
        "auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$", description="auto, cpu, mps, cuda or cuda:N"
    )
    threads: int = Field(0, ge=0, le=1024, description="CPU threads for training; 0 takes every core")
    private_key: SecretStr = Field(
        SecretStr(""), description="Ed25519 private key, base64; set, every manifest is signed"
    )
    seed: int = Field(
        0, ge=0, le=MAX_SEED, description="seed of every random choice in training and gate, up to 2147483647"
    )
    max_examples: int = Field(
        200_000, ge=100, description="most examples one run holds in memory; beyond it the oldest go"
    )
    replay_examples: int = Field(
        2_000,
        ge=0,
        description="older examples that an incremental run learns again, against forgetting; 0 is none",
    )
    min_examples: int = Field(
        100,
        ge=1,
        description="fewer examples than this train no first model, and fewer pairs no fine_tune or "
        "domain_adaptation; synthetic ones count",
    )
    min_positive_share: float = Field(
        0.5, ge=0.0, le=1.0, description="share of the examples that must be positive to train a first model"
    )
    holdout_share: float = Field(
        0.25,
        ge=0.05,
        le=0.3,
        description="share of the clicks, those after a moment, that the gate tries a version on",
    )
    gate_min_queries: int = Field(
        50, ge=2, description="fewer held-out queries than this give an inconclusive verdict"
    )
    gate_max_queries: int = Field(
        0,
        ge=0,
        description="held-out queries that the gate measures at most, a sample by the seed, and no fewer than "
        "`gate_min_queries`; 0 is all",
    )
    gate_max_lost_recall: float = Field(
        0.1, ge=0.0, le=1.0, description="share of surely wanted documents that a version may lose from its top 10"
    )

    gate_max_golden_loss: float = Field(
        0.01,
        ge=0.0,
        le=1.0,
        description="share of the MRR on the golden set that a version may lose, of its parent's and of the first "
        "one's",
    )
    gate_max_domain_loss: float = Field(
        0.03, ge=0.0, le=1.0, description="share of its parent's MRR on one domain that it may lose beyond chance"
    )
    gate_max_slowdown: float = Field(
        1.5,
        ge=1.0,
        description="times as long as its parent that a version may take for a query, beyond chance; "
        "a large number, such as 1e9, lets it take any",
    )

    position_bias: Correction = Field(
        "estimated",
        description="how clicks are corrected for their position: estimated from swaps, inverse_rank, or off",
    )
    propensity_clip: float = Field(
        10.0,
        ge=1,
        description="no click weighs more than this many times a click on the first result; "
        "a large number, such as 1e9, lets it",
    )
    debiased_training: bool = Field(
        default=False,
        description="learn by what position_bias says, too; without it, the gate alone goes by that",
    )
    max_document_share: float = Field(
        0.02,
        ge=0.0,
        le=1.0,
        description="a document with a larger share of the clicks teaches as much as the average one; 0 lets it",
    )
    shared_evidence: float = Field(
        1.0,
        ge=0.0,
        description="clicks that a rare query borrows at most from near-duplicates of it; 0 lets each learn "
        "alone, a large number, such as 1e9, lets it borrow all",
    )

    tracker: Literal["none", "mlflow", "wandb"] = Field(
        "none", description="experiment tracker that is told of every version: mlflow, wandb or none"
    )
    tracker_uri: str = Field("", description="MLflow's tracking URI; empty leaves it to MLflow's own variables")

    @model_validator(mode="after")
    def _gate_can_tell(self) -> Self:
        if 0 < self.gate_max_queries < self.gate_min_queries:
            raise ValueError(
                f"a gate that measures {self.gate_max_queries} queries (gate_max_queries) and needs "
                f"{self.gate_min_queries} (gate_min_queries) can never tell anything"
            )
        return self

    def for_lineage(self) -> dict[str, str | int | float | bool]:
        """What a reader of the artifact needs to train it again. No secrets, no addresses."""
        return self.of_rungs() | {
            "seed": self.seed,
            "max_examples": self.max_examples,
            "replay_examples": self.replay_examples,
            "min_examples": self.min_examples,
            "min_positive_share": self.min_positive_share,
            "position_bias": self.position_bias,
            "propensity_clip": self.propensity_clip,
            "debiased_training": self.debiased_training,
            "max_document_share": self.max_document_share,
            "shared_evidence": self.shared_evidence,
            "holdout_share": self.holdout_share,
            "gate_min_queries": self.gate_min_queries,
            "gate_max_queries": self.gate_max_queries,
            "gate_max_golden_loss": self.gate_max_golden_loss,
            "gate_max_domain_loss": self.gate_max_domain_loss,
            "gate_max_slowdown": self.gate_max_slowdown,
            "gate_max_lost_recall": self.gate_max_lost_recall,
        }
