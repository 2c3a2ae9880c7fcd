"""The one error tree. A message says what was wrong, with which value, and what to do."""

from __future__ import annotations


class ClickloopError(Exception):
    """Root of every error that Clickloop raises on purpose."""


class SettingsError(ClickloopError):
    """A setting or a command-line argument can't be used. The CLI exits with 2."""


class MessageError(ClickloopError):
    """A message can't be used. Its consumer sends the original bytes to ``dead-letters``."""


class UnreadableMessageError(MessageError):
    """Bytes that are no JSON, or JSON that isn't of the topic's type."""


class InvalidMessageError(MessageError):
    """A readable message that breaks a rule of its topic (an empty id, a position below 1 ...)."""


class ImpossibleFeedbackError(MessageError):
    """Feedback that is right in itself, and can't have happened: on a document that was not shown."""


class BrokerError(ClickloopError):
    """The Kafka cluster can't be reached, or refuses what was asked."""


class RangeGoneError(BrokerError):
    """The log no longer holds the records that were asked for: another try is in vain."""


class ArtifactError(ClickloopError):
    """A model artifact is missing, torn, altered or signed by a stranger. It is never loaded."""


class StoreUnavailableError(ArtifactError):
    """The store can't be reached, read or written just now. What it holds may be good: it is worth another try."""


class StackError(ClickloopError):
    """A process of the embedded stack did not start, or stopped."""


class TrainingError(ClickloopError):
    """A training run can't be done as its command asks."""


class TooFewError(TrainingError):
    """There is too little to learn from yet; more may come."""


class NodeError(ClickloopError):
    """A search node can't start or go on: its port or its folder is taken, or its index is unusable."""
