"""Wishes, in the imperative. A command may be refused; its ``command_id`` makes it safe to send twice."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct, field

from clickloop.events import Id, IndexName, Message, OffsetRange, Seconds, Time, VersionKind

Strategy = Literal["incremental", "full_retrain", "domain_adaptation", "fine_tune", "contrastive"]
Policy = Literal["threshold", "drift", "performance", "new_documents", "schedule", "manual"]


class Command(Message, frozen=True, kw_only=True, omit_defaults=True):
    command_id: Id
    index: IndexName
    issued_at: Time


class Reason(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Why now, in a sentence, with the figures behind it."""

    policies: list[Policy]
    text: str
    figures: dict[str, float] = field(default_factory=dict)


class Retrain(Command, frozen=True, kw_only=True, omit_defaults=True):
    """Train on exactly these offsets, from this parent, within this budget."""

    kinds: Annotated[list[VersionKind], Meta(min_length=1)]
    """Rungs of the ladder to train, in this order; each starts from the last one that passed its gate."""
    ranges: list[OffsetRange]
    reason: Reason
    parent: str = ""
    """Version to start from; empty means the live one, or the base model where there is none."""
    strategy: Strategy = "incremental"
    budget_seconds: Seconds = 3600.0
    pairs_uri: str = ""
    """For ``fine_tune``: a file of pairs that the trainer can read."""


class Cancel(Command, frozen=True, kw_only=True, omit_defaults=True):
    """End the run of one Retrain command, or never begin it. What it has published already stays."""

    retrain: Id
    """The Retrain's command_id."""
    reason: str = ""


class Rollback(Command, frozen=True, kw_only=True, omit_defaults=True):
    """Give all traffic back to ``version``. Empty: the live one where there is a candidate, else what that was
    compared with, mostly its parent."""

    reason: str
    version: str = ""


class Promote(Command, frozen=True, kw_only=True, omit_defaults=True):
    """Give all traffic to ``version`` now."""

    version: Id
    reason: str


class Pause(Command, frozen=True, kw_only=True, omit_defaults=True):
    """Stop (or with ``paused=False`` resume) automatic retraining and rollout of the index."""

    paused: bool
    reason: str = ""


class ForgetUser(Command, frozen=True, kw_only=True, omit_defaults=True):
    """Train on nothing of this split key from now on."""

    split_key: Id
