"""The learner's ladder: one small module a rung, chosen from a table."""

from __future__ import annotations

from clickloop.events import VersionKind
from trainer.methods.adapter import AdapterMethod
from trainer.methods.base import Method
from trainer.methods.full import FullMethod
from trainer.methods.query_encoder import QueryEncoderMethod

METHODS: dict[VersionKind, Method] = {
    method.kind: method for method in (AdapterMethod(), QueryEncoderMethod(), FullMethod())
}
