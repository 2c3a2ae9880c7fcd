"""Clickloop keeps the embedding model behind a semantic search learning from its users.

An app needs two names from here, and a base install (no torch, no faust)::

    from clickloop import FeedbackProducer, ModelSubscriber

``FeedbackProducer`` sends clicks, ratings, documents and (where the search is not ours) queries.
``ModelSubscriber`` yields every model version that the trainer publishes.

Names are resolved at first use, so that ``import clickloop`` stays cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clickloop.client import FeedbackProducer, ModelSubscriber
    from clickloop.errors import ClickloopError
    from clickloop.events import ModelVersionPublished, QueryServed, ResultClicked, ResultRated

__version__ = "0.1.0"

_HOME = {
    "FeedbackProducer": "clickloop.client",
    "ModelSubscriber": "clickloop.client",
    "ClickloopError": "clickloop.errors",
    "ModelVersionPublished": "clickloop.events",
    "QueryServed": "clickloop.events",
    "ResultClicked": "clickloop.events",
    "ResultRated": "clickloop.events",
}

__all__ = [
    "ClickloopError",
    "FeedbackProducer",
    "ModelSubscriber",
    "ModelVersionPublished",
    "QueryServed",
    "ResultClicked",
    "ResultRated",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'clickloop' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
