"""How each rung learns. The defaults are what did well on the benchmarks.

The names are the rung's and that of the method's field (trainer/methods/), which says more about it.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from clickloop.settings import ArtifactSettings

FullLoss = Literal["both_ways", "query_to_document", "triplet", "cosine_similarity"]


class RungSettings(ArtifactSettings):
    """Settings of the rungs, a part of TrainerSettings."""

    adapter_learning_rate: float = Field(1e-3, gt=0.0, le=1.0, description="peak of the adapter's learning rate")
    adapter_epochs: int = Field(4, ge=1, le=1000, description="rounds over the queries")
    adapter_batch: int = Field(256, ge=1, le=65_536, description="queries in one step")
    adapter_distillation: float = Field(
        0.05, ge=0.0, description="weight of staying near the parent's answers, beside the clicks"
    )
    adapter_doubts: bool = Field(
        True,
        description="weigh each click the less, the less other clicks on its query agree; switch it off where a "
        "query wants many documents alike",
    )

    query_encoder_learning_rate: float = Field(
        2e-4, gt=0.0, le=1.0, description="peak of the query encoder's learning rate"
    )
    query_encoder_epochs: int = Field(2, ge=1, le=100, description="rounds over queries and documents' pieces")
    query_encoder_batch: int = Field(64, ge=1, le=4096, description="queries in one step")
    query_encoder_distillation: float = Field(
        0.1, ge=0.0, description="weight of staying near the parent's answers, beside the clicks"
    )
    query_encoder_doubts: bool = Field(
        True,
        description="the same for the query encoder",
    )
    query_encoder_layers: int = Field(
        2, ge=1, le=100, description="layers of the encoder that learn, from the top"
    )
    query_encoder_rank: int = Field(
        0,
        ge=0,
        le=1024,
        description="rank of changes of those layers (LoRA), at five times that rate; 0 trains the layers",
    )
    query_encoder_share: float = Field(
        0.6, gt=0.0, le=1.0, description="how far to go from the parent's weights to the trained ones"
    )

    full_learning_rate: float = Field(1.2e-4, gt=0.0, le=1.0, description="peak of the learning rate of full")
    full_epochs: int = Field(5, ge=1, le=100, description="rounds over the clicks and a part of the pieces")
    full_batch: int = Field(32, ge=2, le=4096, description="pairs in one step, negatives for one another")
    full_domain_batches: bool = Field(
        False,
        description="make each batch of pairs of one domain, as examples name them, so that negatives are of it",
    )
    full_cached_batch: int = Field(
        0,
        ge=0,
        le=8192,
        description="texts of a batch held in memory at once with all that their gradients need, for batches that "
        "are larger than it; each text is then embedded twice; 0 holds all",
    )
    full_accumulate: int = Field(
        1, ge=1, le=1024, description="batches whose gradients are added up before a step; 1 is a step for each"
    )
    full_seeds: int = Field(
        1,
        ge=1,
        le=16,
        description="trainings, each from another seed, whose weights' mean is taken; each takes as long as one",
    )
    full_patience: int = Field(
        0,
        ge=0,
        le=100,
        description="epochs without a better MRR on the latest tenth of the clicked queries, which is kept apart "
        "for it, after which training ends with the best one's weights; 0 is no early stopping",
    )
    full_doubts: bool = Field(
        True,
        description="the same for full, which leaves out clicks that hardly any other agrees with",
    )
    full_depth: float = Field(
        2 / 3, gt=0.0, le=1.0, description="share of the encoder's layers that learn, from the top"
    )
    full_share: float = Field(
        0.7, gt=0.0, le=1.0, description="how far to go from the parent's weights to the trained ones"
    )
    full_loss: FullLoss = Field(
        "both_ways",
        description="ranking among a batch: query_to_document, or from documents to queries as well (both_ways); "
        "triplet leads the batch's hardest negative by a margin; cosine_similarity scores pairs by their weights",
    )
    full_matryoshka: str = Field(
        "",
        pattern=r"^( *[1-9][0-9]* *(, *[1-9][0-9]* *)*)?$",
        description="dimensions, such as 384,256,128, to sum the loss over the vectors' first ones; empty is off",
    )
    full_teacher: str = Field(
        "",
        description="larger model, by name or folder, whose lead of each document over a hard negative is learnt "
        "too; cross-encoder:NAME for a cross-encoder; empty is none",
    )
    full_head: bool = Field(
        True,
        description="fit a linear map on the queries in the new space; without one a version is a plain "
        "sentence-transformers model, which GGUF can hold",
    )

    def of_rungs(self) -> dict[str, str | int | float | bool]:
        """Setting → value of all of the above."""
        return {name: getattr(self, name) for name in OF_RUNGS}


OF_RUNGS: tuple[str, ...] = tuple(RungSettings.__annotations__)
