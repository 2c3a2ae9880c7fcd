"""Settings of ``clickloop streams``."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import Field, field_validator, model_validator
from pydantic_settings import NoDecode

from clickloop.commands import Policy
from clickloop.events import Difficulty, VersionKind
from clickloop.propensity import Correction
from clickloop.settings import Settings
from streams.balance import parsed
from streams.policies import Schedule

Percent = Annotated[float, Field(gt=0.0, le=100.0)]


class StreamsSettings(Settings):
    """What an operator would change about the stream rules. Times are seconds."""

    table: ClassVar[str] = "streams"

    window_seconds: float = Field(
        600.0, gt=0, le=7 * 86_400, description="how long after its query feedback still counts"
    )
    max_open_impressions: int = Field(
        1_000_000, ge=1, description="open impressions a worker keeps; beyond it the oldest go, counted"
    )

    min_rating: float = Field(4.0, ge=0, le=5, description="a positive rated lower weighs nothing; 0 is no filter")
    min_accuracy: float = Field(
        4.0, ge=0, le=5, description="the same for the accuracy that a rating may carry; 0 is no filter"
    )
    min_relevance: float = Field(
        4.0, ge=0, le=5, description="the same for the relevance that a rating may carry; 0 is no filter"
    )
    skip_domains: Annotated[list[str], NoDecode] = Field(
        [], description="domains whose impressions form no examples, comma-separated"
    )
    position_bias: Correction = Field(
        "estimated",
        description="how weights are corrected for the position: by 1/position (inverse_rank, or estimated, "
        "where the trainer puts what swaps tell in its place), or off",
    )
    propensity_clip: float = Field(
        10.0, ge=1, description="no click weighs more than this many times a click on the first result"
    )
    min_click_seconds: float = Field(
        0.2, ge=0, description="a click sooner after its answer is not a person's; 0 switches the rule off"
    )
    clicks_per_minute: int = Field(
        60, ge=0, description="clicks of one split key that count, a minute; 0 switches the rule off"
    )
    clicks_per_document: int = Field(
        3, ge=0, description="clicks of one split key on one document that count, an hour; 0 switches the rule off"
    )
    max_key_share: float = Field(
        0.01, ge=0, le=1, description="share of an hour's clicks that one split key may have; 0 switches it off"
    )
    max_document_share: float = Field(
        0.02,
        ge=0,
        le=1,
        description="share of an hour's clicks that one document or query text may have; 0 switches it off",
    )
    trust_floor: float = Field(
        0.1, ge=0, le=1, description="an example that is believed less weighs nothing, and says why"
    )
    redis_url: str = Field(
        "", description="redis://host:port/db for trust counts across partitions; empty counts in each alone"
    )

    report_seconds: float = Field(2.0, gt=0, description="time between a partition's drift reports")
    drift_window_queries: int = Field(
        500, ge=50, description="queries of a partition in one measured window; enough are needed to see drift"
    )
    drift_window_seconds: float = Field(
        300.0, gt=0, description="a window this old is measured with fewer queries (at least 50)"
    )

    policies: Annotated[list[Policy], NoDecode] = Field(
        ["threshold", "drift", "performance"],
        min_length=1,
        description="what may trigger a retrain, comma-separated: threshold, drift, performance, new_documents, "
        "schedule; manual by itself leaves it to operators",
    )
    threshold: int = Field(100, ge=1, description="new examples that are enough for a retrain")
    undecided_examples: int = Field(
        20_000,
        ge=0,
        description="most examples that a command covers again because no gate has decided on them; 0 is none",
    )
    drift_min_examples: int = Field(
        50, ge=1, description="new examples without which no policy but threshold triggers a retrain"
    )
    document_threshold: int = Field(
        1000, ge=1, description="documents since the newest version was trained that are enough for new_documents"
    )
    schedule: str = Field(
        "",
        description="when the policy schedule retrains: an interval (90m, 12h, 7d), or a time of day in UTC "
        "(03:00)",
    )
    domain_minimums: Annotated[list[str], NoDecode] = Field(
        [], description="new examples of a domain without which nothing is trained: name=count, comma-separated"
    )
    difficulty_minimums: Annotated[list[str], NoDecode] = Field(
        [], description="the same by difficulty, as in easy=20,hard=20"
    )
    cool_down_seconds: float = Field(30.0, ge=0, description="least time from the end of one retrain to the next")
    failed_cool_down_seconds: float = Field(
        300.0,
        ge=0,
        description="the same after a command that failed at its gate, broke or was cancelled; it doubles with "
        "each further one, up to a day",
    )
    kinds: Annotated[list[Literal[VersionKind, "auto"]], NoDecode] = Field(
        ["adapter", "query_encoder"],
        min_length=1,
        description="rungs to train, in order, comma-separated; auto takes those that are expected to pay",
    )
    gain_per_hour: float = Field(
        0.05,
        ge=0,
        description="auto trains a rung that is expected to raise MRR by this share for each hour it takes",
    )
    budget_seconds: float = Field(3600.0, gt=0, description="longest time that one command may encode and train")
    daily_budget_seconds: float = Field(
        86_400.0, gt=0, description="training time that the trigger may spend in any 24 hours"
    )

    rollout_steps: Annotated[list[Percent], NoDecode] = Field(
        [10.0, 50.0, 100.0], min_length=1, description="shares of a new version in percent, comma-separated"
    )
    rollout_min_queries: int = Field(
        50, ge=0, description="queries that the new version answers before its next share"
    )
    rollout_max_wait_seconds: float = Field(
        60.0, gt=0, description="the next share comes after this time even with fewer queries"
    )

    dead_letters_per_minute: int = Field(
        600, ge=1, description="more unusable messages than this stop the worker, loudly"
    )
    session_timeout_seconds: float = Field(
        6.0, ge=1, le=300, description="a worker that is silent for so long loses its partitions"
    )
    metrics_port: int = Field(
        0, ge=0, le=65_535, description="port of /metrics for Prometheus, of more processes the first; 0 is none"
    )
    processes: int = Field(
        1, ge=1, description="processes of a worker, at most `partitions`; one of them uses one core"
    )

    @field_validator(
        "policies",
        "kinds",
        "rollout_steps",
        "skip_domains",
        "domain_minimums",
        "difficulty_minimums",
        mode="before",
    )
    @classmethod
    def _split(cls, value: Any) -> Any:
        """From the environment and from flags lists come as comma-separated text."""
        if isinstance(value, str):
            return [part.strip() for part in value.split(",") if part.strip()]
        return value

    @field_validator("schedule")
    @classmethod
    def _readable(cls, value: str) -> str:
        if value:
            Schedule.parse(value)
        return value

    @field_validator("kinds")
    @classmethod
    def _auto_alone(cls, value: list[str]) -> list[str]:
        if "auto" in value and len(value) > 1:
            raise ValueError("auto stands alone")
        return value

    @model_validator(mode="after")
    def _schedule_given(self) -> Self:
        if "schedule" in self.policies and not self.schedule:
            raise ValueError("the policy schedule needs the setting schedule, such as 12h or 03:00")
        return self

    @model_validator(mode="after")
    def _processes_fit(self) -> Self:
        if self.processes > self.partitions:
            raise ValueError(
                f"{self.processes} processes share {self.partitions} partitions: some had nothing to do"
            )
        if self.metrics_port and self.metrics_port + self.processes - 1 > 65_535:
            raise ValueError(
                f"{self.processes} processes need as many ports from metrics_port {self.metrics_port}"
            )
        return self

    @field_validator("domain_minimums", "difficulty_minimums")
    @classmethod
    def _are_counts(cls, value: list[str]) -> list[str]:
        parsed(value)
        return value

    @field_validator("difficulty_minimums")
    @classmethod
    def _are_difficulties(cls, value: list[str]) -> list[str]:
        unknown = sorted(set(parsed(value)) - set(get_args(Difficulty)))
        if unknown:
            raise ValueError(f"{unknown[0]!r} is none of {', '.join(get_args(Difficulty))}")
        return value

    @field_validator("rollout_steps")
    @classmethod
    def _grow_to_all(cls, value: list[float]) -> list[float]:
        if sorted(set(value)) != value or value[-1] != 100.0:
            raise ValueError("the shares must grow and end with 100")
        return value

    def part(self, number: int) -> Self:
        """What process ``number`` of the worker goes by: its share of the memory, and a port of its own."""
        port = self.metrics_port + number if self.metrics_port else 0
        share = max(1, self.max_open_impressions // self.processes)
        return self.model_copy(update={"metrics_port": port, "max_open_impressions": share})
