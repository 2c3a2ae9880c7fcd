"""Settings: one typed object per service, from flags, environment, one TOML file and defaults, in that order.

The environment's names are ``CLICKLOOP_`` and the field's name in capitals, as in
``CLICKLOOP_BOOTSTRAP_SERVERS``. The TOML file is ``clickloop.toml`` in the working directory, or what
``CLICKLOOP_CONFIG`` names (set, but empty: none). Each service reads its own table (``[search]``, ``[streams]``
...) on top of the file's top level; ``[sources.NAME]`` are for all that read what apps send.
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Any, ClassVar, Self

import pydantic
from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict
from pydantic_settings import SettingsError as UnreadableSettingsError

from clickloop.errors import SettingsError
from clickloop.sources import Mapping, mappings_of

MAX_SEED = 2**31 - 1
"""Every random generator takes it, with a small number on top."""


def _toml_file() -> tuple[Path, dict[str, Any]]:
    """Where the TOML file is, and what is in it; nothing where there is none. Raises SettingsError."""
    named = os.environ.get("CLICKLOOP_CONFIG")
    path = Path(named or "clickloop.toml")
    if named == "":
        return path, {}
    if not path.is_file():
        if named:
            raise SettingsError(f"CLICKLOOP_CONFIG names {path}, which is no file")
        return path, {}
    try:
        return path, tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is no valid TOML: {error}") from None
    except OSError as error:
        raise SettingsError(f"{path} can't be read: {error}") from None


def load_mappings() -> dict[str, Mapping]:
    """The TOML file's tables ``[sources.NAME]``: how records with an app's own field names are read.

    Raises SettingsError.
    """
    path, content = _toml_file()
    table = content.get("sources", {})
    if not isinstance(table, dict):
        raise SettingsError(f"{path}: sources is {table!r}, not a table of mappings")
    return mappings_of(table)


class _TomlSource(PydanticBaseSettingsSource):
    """The TOML file's top level, overlaid with the service's own table."""

    def __init__(self, settings_class: type[BaseSettings], table: str) -> None:
        super().__init__(settings_class)
        self._table = table

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:  # noqa: ARG002
        return None, field_name, False

    def __call__(self) -> dict[str, Any]:
        path, content = _toml_file()
        shared = {k: v for k, v in content.items() if not isinstance(v, dict)}
        known = self.settings_cls.model_fields
        own = content.get(self._table, {})
        if not isinstance(own, dict):
            raise SettingsError(f"{path}: {self._table} is {own!r}, not a table of settings")
        unknown = sorted(set(own) - set(known))
        if unknown:
            raise SettingsError(f"{path}: [{self._table}] has no setting {unknown[0]!r}")
        values: dict[str, Any] = {k: v for k, v in shared.items() if k in known}
        return {**values, **own}


class Settings(BaseSettings):
    """What every service needs: where the broker is, and which index this is about."""

    model_config = SettingsConfigDict(
        env_prefix="CLICKLOOP_",
        extra="forbid",
        frozen=True,
        # No manifest can hold them, and a bound that is none lets everything through.
        allow_inf_nan=False,
    )
    table: ClassVar[str] = "clickloop"

    bootstrap_servers: str = Field("localhost:9092", description="Kafka's host:port list")
    topic_prefix: str = Field(
        "clickloop", pattern=r"^[a-zA-Z0-9._-]{1,100}$", description="first part of topic names"
    )
    partitions: int = Field(4, ge=1, le=1000, description="partitions of queries, clicks, ratings and examples")
    replication_factor: int = Field(1, ge=1, description="replicas of topics that Clickloop creates")
    index: str = Field("default", pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$", description="name of the index")
    log_format: str = Field("console", pattern="^(console|json)$", description="console or json")
    log_level: str = Field(
        "INFO", pattern="^(DEBUG|INFO|WARNING|ERROR)$", description="least level that is logged"
    )

    @field_validator("bootstrap_servers")
    @classmethod
    def _hosts_and_ports(cls, value: str) -> str:
        from clickloop.kafka import check_servers

        check_servers(value)
        return value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, _TomlSource(settings_cls, cls.table)

    @classmethod
    def load(cls, **flags: Any) -> Self:
        """Read the settings; ``flags`` that are None were not given.

        Raises SettingsError with one line that names the setting, the value and what is allowed.
        """
        try:
            return cls(**{name: value for name, value in flags.items() if value is not None})
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            # What a validator of ours said, without pydantic's words before it.
            said = first.get("ctx", {}).get("error") or first["msg"]
            if not first["loc"]:
                # Settings that don't go together. What was given is all of them, some of them secrets.
                raise SettingsError(f"settings of {cls.table}: {said}") from None
            name = ".".join(str(part) for part in first["loc"])
            raise SettingsError(f"setting {name}: {said} (got {first['input']!r})") from None
        except UnreadableSettingsError as error:
            raise SettingsError(f"{error}: {error.__cause__ or 'not JSON'}") from None


class GenerateSettings(Settings):
    """What ``clickloop generate`` needs on top; the TOML table is ``[generate]``."""

    table: ClassVar[str] = "generate"

    queries_per_document: int = Field(3, ge=1, le=20, description="queries made from one document at most")
    synthetic_weight: float = Field(
        0.1, gt=0.0, le=1.0, description="what a synthetic example counts, in parts of a fully trusted click"
    )
    min_examples: int = Field(100, ge=1, description="fewer pairs than this are not sent")
    seed: int = Field(0, ge=0, le=MAX_SEED, description="seed of the choice among a document's queries")


class ArtifactSettings(Settings):
    """What services that write or load model artifacts need on top."""

    store_url: str = Field("file://.clickloop/store", description="fsspec URL that holds models and vectors")
    base_model: str = Field("all-MiniLM-L6-v2", description="sentence-transformers name or folder")
    public_key: str = Field(
        "", description="Ed25519 public key, base64; set, only versions signed by it are loaded"
    )
