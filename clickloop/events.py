"""Facts, in the past tense: what happened, as it goes over the wire.

Every class is one message type of one topic (``clickloop/topics.py`` says which), is described in
``schemas/``, and is encoded by ``clickloop/codec.py``. Fields may be added with a default and are never
removed or renamed: a reader of today reads every message ever released. Readers ignore fields that they
don't know. Times are timezone-aware and UTC; durations are seconds; positions count from 1.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from msgspec import Meta, Struct, field

Id = Annotated[str, Meta(min_length=1, max_length=256)]
# In Python "$" also matches before a newline at the end, so the end is \Z here and $ in the schemas.
IndexName = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}\Z")]
Text = Annotated[str, Meta(max_length=10_000)]
Time = Annotated[datetime, Meta(tz=True, extra_json_schema={"pattern": "^(19[7-9][0-9]|[2-8][0-9]{3})-"})]
"""With a zone, and from 1970 to 8999 as written, so that arithmetic stays within what computers can hold."""
Position = Annotated[int, Meta(ge=1, le=10_000)]
Share = Annotated[float, Meta(ge=0.0, le=1.0)]
Weight = Annotated[float, Meta(ge=0.0, le=1.0)]
Count = Annotated[int, Meta(ge=0)]
Integer = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
"""What 64 bits hold, and so every index."""
# A number that is an integer must be one of those: beside it, the schema's "number" would let any pass.
Fraction = Annotated[float, Meta(extra_json_schema={"not": {"type": "integer"}})]
Seconds = Annotated[float, Meta(ge=0.0)]

Difficulty = Literal["easy", "medium", "hard"]
Domain = Annotated[str, Meta(max_length=256)]
Stars = Annotated[float, Meta(ge=1.0, le=5.0)]
VersionKind = Literal["adapter", "query_encoder", "full"]
Verdict = Literal["pass", "fail", "inconclusive"]
Part = Literal["value", "key", "headers"]
"""Of a record."""


class Message(Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="type", tag=True, gc=False):
    """Common root of events and commands. On the wire ``type`` holds the class's name.

    A message never leads back to itself, so the garbage collector need not know of it.
    """


class Event(Message, frozen=True, kw_only=True, omit_defaults=True):
    """A fact. ``event_id`` makes redelivery harmless: readers ignore an id that they know."""

    event_id: Id
    index: IndexName


class Result(Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """One document as it was shown."""

    doc_id: Id
    position: Position
    score: float = 0.0
    propensity: Annotated[float, Meta(gt=0.0, le=1.0)] = 1.0
    """Probability with which the node's exploration policy shows this document at this position."""


class QueryServed(Event, frozen=True, kw_only=True, omit_defaults=True):
    """An impression: what was asked, and what was shown where, by which version and arm."""

    query_id: Id
    query: Text
    served_at: Time
    results: Annotated[list[Result], Meta(max_length=1000)]
    split_key: str = ""
    """Hashed user or session. Never a name, an address or an account number."""
    version: str = ""
    space: str = ""
    split_id: str = ""
    arm: str = ""
    latency_seconds: Seconds = 0.0
    sketch: bytes = b""
    """Fixed random projection of the base encoder's vector, int8, base64 on the wire."""
    domain: Domain = ""
    """The part of the collection, or the kind of user, that this was for, in the app's own words."""
    swapped: Position | None = None
    """Exploration swapped the results at this position and the next; None where it left them as ranked."""


class ResultClicked(Event, frozen=True, kw_only=True, omit_defaults=True):
    query_id: Id
    doc_id: Id
    clicked_at: Time
    position: Position | None = None
    dwell_seconds: Seconds | None = None
    split_key: str = ""


class ResultRated(Event, frozen=True, kw_only=True, omit_defaults=True):
    query_id: Id
    doc_id: Id
    rated_at: Time
    rating: Stars
    split_key: str = ""
    accuracy: Stars | None = None
    """How right what it says is, where the app asks."""
    relevance: Stars | None = None
    """How much it has to do with the query, where the app asks."""


class ResultPreferred(Event, frozen=True, kw_only=True, omit_defaults=True):
    """Of two results of one impression a user, or a judge, chose one."""

    query_id: Id
    preferred: Id
    alternative: Id
    preferred_at: Time
    strength: Annotated[float, Meta(gt=0.0, le=1.0)] = 1.0
    """From next to level to beyond doubt."""
    split_key: str = ""

    @property
    def doc_id(self) -> str:
        """The document that this speaks for."""
        return self.preferred


class DocumentChanged(Event, frozen=True, kw_only=True, omit_defaults=True):
    """A document is new, has another text, or (``deleted``) is gone."""

    doc_id: Id
    changed_at: Time
    text: Annotated[str, Meta(max_length=1_000_000)] = ""
    title: Text = ""
    attributes: dict[str, str | Integer | Fraction | bool] = field(default_factory=dict)
    deleted: bool = False


class ExampleFormed(Event, frozen=True, kw_only=True, omit_defaults=True):
    """A weighted training example. The highest ``revision`` of an ``example_id`` counts."""

    example_id: Id
    revision: Annotated[int, Meta(ge=1)]
    query_id: Id
    query: Text
    doc_id: Id
    label: Literal["positive", "negative"]
    weight: Weight
    """Trust, times the clipped inverse of the examination probability, scaled into [0, 1]. 0: quarantined."""
    served_at: Time
    formed_at: Time
    negatives: list[Id] = field(default_factory=list)
    """Documents shown above the positive and skipped, rated low, or named as the worse one of two."""
    position: Position | None = None
    clicks: Count = 0
    rating: float | None = None
    dwell_seconds: Seconds | None = None
    split_key: str = ""
    version: str = ""
    space: str = ""
    arm: str = ""
    origin: Literal["clicks", "synthetic"] = "clicks"
    """``synthetic``: made from the document itself. It has no impression, and judges no model."""
    trust: Weight | None = None
    """How far the feedback is believed, before any correction for the position."""
    reason: str = ""
    """The rule that took weight away; "" where none did."""
    difficulty: Difficulty | None = None
    """By how far the serving model's score of it was ahead of, or behind, the best other one shown."""
    domain: Domain = ""
    propensity: Annotated[float, Meta(gt=0.0, le=1.0)] = 1.0
    """Probability with which the node's exploration policy shows this document at this position."""
    swapped: Position | None = None
    """As in its impression."""
    worse: dict[Id, Weight] = field(default_factory=dict)
    """Those of ``negatives`` that were named as the worse one of two, and how far that is believed, times its
    strength."""


class Measurement(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one detector saw in one window, with its calibration. It decides nothing."""

    detector: str
    value: float
    threshold: float | None = None
    p_value: Share | None = None
    exceeded: bool = False
    """The value is beyond what the reference's own windows show at the detector's level."""


class OffsetRange(Struct, frozen=True, kw_only=True, order=True):
    """Offsets ``[start, end)`` of one partition."""

    topic: str
    partition: Count
    start: Count
    end: Count


class ArmCounts(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What users did with one version's answers: sums, so that partitions and windows add up."""

    arm: str
    version: str
    queries: Count
    clicked_queries: Count = 0
    reciprocal_rank_sum: float = 0.0


class SliceCounts(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Examples of one domain and difficulty: sums, as above."""

    examples: Count
    domain: Domain = ""
    difficulty: Difficulty | None = None


class DriftMeasured(Event, frozen=True, kw_only=True, omit_defaults=True):
    """One partition's window: counts that add up over partitions, and each detector's figure."""

    partition: Count
    window_start: Time
    window_end: Time
    queries: Count
    clicks: Count = 0
    ratings: Count = 0
    rating_sum: float = 0.0
    reciprocal_rank_sum: float = 0.0
    """Sum over queries of 1/position of the topmost click (0 where there was none)."""
    abandoned: Count = 0
    examples: Count = 0
    """Examples formed in the window (first revisions only)."""
    ranges: list[OffsetRange] = field(default_factory=list)
    """Where those examples lie in ``training-examples``."""
    arms: list[ArmCounts] = field(default_factory=list)
    sketches: Count = 0
    """Queries of the window with a sketch."""
    sketch_sum: Annotated[list[int], Meta(max_length=1024)] = field(default_factory=list)
    """Sum of those sketches, value by value."""
    slices: list[SliceCounts] = field(default_factory=list)
    """Those examples by domain and difficulty."""
    measurements: list[Measurement] = field(default_factory=list)


class TrainingProgressed(Event, frozen=True, kw_only=True, omit_defaults=True):
    run_id: Id
    command_id: Id
    kind: VersionKind
    stage: Literal["waiting", "reading", "training", "encoding", "gate", "publishing", "done", "failed"]
    at: Time
    step: Count = 0
    steps: Count = 0
    loss: float | None = None
    examples_per_second: float | None = None
    eta_seconds: Seconds | None = None
    version: str = ""
    verdict: Verdict | None = None
    message: str = ""


class Estimate(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A metric before and after, and its relative change (0.06 is +6 %) with a 95 % interval.

    Where it was 0 before, there is nothing to relate to: change and interval are of the difference.
    """

    before: float
    after: float
    change: float
    low: float
    high: float


class GoldenResult(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the gate measured on the operators' golden set."""

    digest: str
    """sha256 of the set, in hex."""
    queries: Count
    left_out: Count = 0
    """Queries none of whose relevant documents are in the index."""
    metrics: dict[str, Estimate] = field(default_factory=dict)


class SliceResult(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the gate measured on the held-out queries of one domain or difficulty."""

    slice: str
    queries: Count
    mrr_at_10: Estimate


class CostResult(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a version costs those who serve it, next to its parent."""

    encode_seconds: Estimate
    """To encode one query, alone: medians, and how much longer the candidate takes for the same query."""
    bytes_before: Count
    """Weights that a node loads for the parent: of queries' and documents' encoder, and of the map."""
    bytes_after: Count


class SwapResult(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What held-out clicks on randomised traffic say of two neighbours' order, each weighted by its chance."""

    clicks: Count
    expected: Annotated[float, Meta(ge=0.0)]
    """How many of them would be on swapped pairs if the order made no difference."""
    agreement: Estimate
    """Weighted share of the clicks that speak for the version's own order of the two."""


class LiveResult(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The version that users have, where a candidate was not made of it, and what the gate measured beside it."""

    version: Id
    queries: Count = 0
    """Held-out ones that this version was the first to answer."""
    metrics: dict[str, Estimate] = field(default_factory=dict)
    """With that version before, and with the candidate after."""


class GateResult(Struct, frozen=True, kw_only=True, omit_defaults=True):
    verdict: Verdict
    queries: Count
    metrics: dict[str, Estimate] = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)
    golden: GoldenResult | None = None
    slices: list[SliceResult] = field(default_factory=list)
    """Those with queries enough to say something, the worst first."""
    cost: CostResult | None = None
    swaps: SwapResult | None = None
    confirmed: Count = 0
    """Documents that users surely want and the parent finds in the whole corpus."""
    kept: Share | None = None
    """How many of them are found still; None where they are too few to tell."""
    live: LiveResult | None = None
    """None where the parent is what users have, was named by an operator, or is a rung of the same command that
    passed; and where users have none yet. Without metrics where nothing could be measured beside it, or the parent
    was not beaten either."""


class Lineage(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Where a version comes from: enough to train it again."""

    command_id: str = ""
    run_id: str = ""
    strategy: str = ""
    ranges: list[OffsetRange] = field(default_factory=list)
    examples: Count = 0
    documents: Count = 0
    base_model: str = ""
    settings: dict[str, str | int | float | bool] = field(default_factory=dict)
    seed: int = 0
    code_version: str = ""
    train_seconds: Seconds = 0.0
    newest_example_at: Time | None = None


class ModelVersionPublished(Event, frozen=True, kw_only=True, omit_defaults=True):
    """Model-ready. A version is immutable; its artifact lies complete at ``artifact_uri``."""

    version: Id
    kind: VersionKind
    space: Id
    artifact_uri: str
    digest: str
    """sha256 of the artifact's ``manifest.json``, in hex."""
    published_at: Time
    parent: str | None = None
    signature: str = ""
    """Ed25519 over ``manifest.json``, base64; empty where no key is configured."""
    lineage: Lineage = field(default_factory=Lineage)
    gate: GateResult | None = None


class Arm(Struct, frozen=True, kw_only=True):
    name: Id
    version: Id
    buckets: Annotated[int, Meta(ge=0, le=10_000)]
    """Share of traffic in units of 1/10,000."""


class SplitChanged(Event, frozen=True, kw_only=True, omit_defaults=True):
    """Which arm gets which share from now on. Arm = hash(salt, split key), so it is sticky."""

    split_id: Id
    salt: str
    arms: Annotated[list[Arm], Meta(min_length=1, max_length=16)]
    changed_at: Time
    sequence: Count
    """Grows with every split of the index; a node ignores a split that is older than the one it has."""
    reason: str = ""
    chosen_at: Time | None = None
    """When an operator last chose what is live: nothing that had been published by then moves on by itself."""


class NodeReported(Event, frozen=True, kw_only=True, omit_defaults=True):
    node_id: Id
    reported_at: Time
    state: Literal["starting", "indexing", "serving", "swapped", "rejected", "stopping"]
    address: str = ""
    versions: list[str] = field(default_factory=list)
    """Versions that are loaded, warm and able to answer."""
    rejected: list[str] = field(default_factory=list)
    """Versions that this node can't use."""
    version: str = ""
    """The version that this report is about, where it is about one."""
    split_id: str = ""
    documents: Count = 0
    queries: Count = 0
    failed_queries: Count = 0
    swap_seconds: Seconds | None = None
    message: str = ""


class Header(Struct, frozen=True, kw_only=True):
    """One header of a record. Names may repeat."""

    name: str
    value: bytes


class MessageQuarantined(Event, frozen=True, kw_only=True, omit_defaults=True):
    """A message that its consumer could not use, with the reason: whole, unless ``cut`` says otherwise."""

    topic: str
    partition: Count
    offset: Count
    value: bytes
    """The original bytes, base64 on the wire."""
    quarantined_at: Time
    service: str
    error: str
    reason: str
    key: bytes | None = None
    headers: list[Header] = field(default_factory=list)
    """The original ones: where the record is a CloudEvent in binary mode, half of it is in them."""
    cut: list[Part] = field(default_factory=list)
    """What was too long for a letter: of value and key the beginning is here, of the headers none."""
