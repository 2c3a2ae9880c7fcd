"""The learner's ladder: one small module a rung, put together as the settings say."""

from __future__ import annotations

from clickloop.events import VersionKind
from trainer.methods.adapter import AdapterMethod
from trainer.methods.base import Method
from trainer.methods.full import FullMethod
from trainer.methods.query_encoder import QueryEncoderMethod
from trainer.rung_settings import RungSettings


def methods_of(settings: RungSettings) -> dict[VersionKind, Method]:
    """Every rung by its name."""
    adapter = AdapterMethod(
        learning_rate=settings.adapter_learning_rate,
        epochs=settings.adapter_epochs,
        batch=settings.adapter_batch,
        distillation=settings.adapter_distillation,
        doubts=settings.adapter_doubts,
    )
    query_encoder = QueryEncoderMethod(
        learning_rate=settings.query_encoder_learning_rate,
        epochs=settings.query_encoder_epochs,
        batch=settings.query_encoder_batch,
        distillation=settings.query_encoder_distillation,
        doubts=settings.query_encoder_doubts,
        layers=settings.query_encoder_layers,
        rank=settings.query_encoder_rank,
        share=settings.query_encoder_share,
        head=adapter,
    )
    full = FullMethod(
        learning_rate=settings.full_learning_rate,
        epochs=settings.full_epochs,
        batch=settings.full_batch,
        domain_batches=settings.full_domain_batches,
        cached_batch=settings.full_cached_batch,
        accumulate=settings.full_accumulate,
        seeds=settings.full_seeds,
        patience=settings.full_patience,
        doubts=settings.full_doubts,
        depth=settings.full_depth,
        share=settings.full_share,
        loss=settings.full_loss,
        matryoshka=tuple(int(size) for size in settings.full_matryoshka.split(",") if size),
        teacher=settings.full_teacher,
        head=adapter if settings.full_head else None,
    )
    return {"adapter": adapter, "query_encoder": query_encoder, "full": full}
