"""Settings: flags over environment over file over defaults, and one line for a mistake."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import pytest
import typer
from pydantic import Field

from clickloop import replay, tuning
from clickloop.errors import SettingsError
from clickloop.model_store import ModelStore
from clickloop.settings import ArtifactSettings, GenerateSettings, Settings
from search.settings import SearchSettings
from streams.settings import StreamsSettings
from trainer.settings import TrainerSettings


class ProbeSettings(ArtifactSettings):
    table: ClassVar[str] = "probe"

    port: int = Field(8080, ge=1, le=65_535, description="port to listen on")
    kinds: list[str] = Field(["a"], description="a list, as JSON in the environment")


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("CONFIG", "PORT", "INDEX", "BOOTSTRAP_SERVERS", "KINDS", "STORE_URL"):
        monkeypatch.delenv(f"CLICKLOOP_{name}", raising=False)


def test_defaults_hold_without_anything() -> None:
    settings = ProbeSettings.load()
    assert (settings.port, settings.index, settings.bootstrap_servers) == (8080, "default", "localhost:9092")


def test_flag_beats_environment_beats_own_table_beats_top_level(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "clickloop.toml").write_text(
        'index = "top"\nstore_url = "file:///top"\n[probe]\nindex = "own"\nport = 1\n'
    )
    assert ProbeSettings.load().index == "own"
    assert ProbeSettings.load().store_url == "file:///top"
    assert Settings.load().index == "top"
    monkeypatch.setenv("CLICKLOOP_INDEX", "env")
    assert ProbeSettings.load().index == "env"
    assert ProbeSettings.load(index="flag", port=None).index == "flag"
    assert ProbeSettings.load(port=None).port == 1


def test_other_services_tables_and_their_shared_values_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "clickloop.toml").write_text("window_seconds = 5\n[streams]\nanything = 1\n[probe]\nport = 2\n")
    assert ProbeSettings.load().port == 2


def test_named_file_is_read_and_an_empty_name_means_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "clickloop.toml").write_text("[probe]\nport = 3\n")
    (tmp_path / "other.toml").write_text("[probe]\nport = 4\n")
    monkeypatch.setenv("CLICKLOOP_CONFIG", str(tmp_path / "other.toml"))
    assert ProbeSettings.load().port == 4
    monkeypatch.setenv("CLICKLOOP_CONFIG", "")
    assert ProbeSettings.load().port == 8080


def one_line(call_with: dict[str, object]) -> str:
    with pytest.raises(SettingsError) as caught:
        ProbeSettings.load(**call_with)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("flags", "named", "value"),
    [
        ({"port": 0}, "port", "0"),
        ({"port": "http"}, "port", "http"),
        ({"index": "My Index"}, "index", "My Index"),
        ({"index": "a\n"}, "index", "a"),
        ({"log_level": "LOUD"}, "log_level", "LOUD"),
        ({"no_such": 1}, "no_such", "1"),
    ],
)
def test_bad_value_is_named_with_its_setting_in_one_line(flags: dict[str, object], named: str, value: str) -> None:
    message = one_line(flags)
    assert f"setting {named}:" in message
    assert value in message


@pytest.mark.parametrize("value", ["inf", "-inf", "nan", "1e999"])
@pytest.mark.parametrize(
    ("service", "name"),
    [
        (TrainerSettings, "gate_max_slowdown"),
        (TrainerSettings, "propensity_clip"),
        (TrainerSettings, "holdout_share"),
        (TrainerSettings, "adapter_learning_rate"),
        (StreamsSettings, "window_seconds"),
        (SearchSettings, "dense_weight"),
    ],
)
def test_number_that_is_not_finite_is_refused_before_anything_goes_by_it(
    service: type[Settings], name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A manifest can't hold it, so that every version would be trained for nothing."""
    monkeypatch.setenv(f"CLICKLOOP_{name.upper()}", value)
    with pytest.raises(SettingsError, match=rf"setting {name}: .*finite number") as caught:
        service.load()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("service", [TrainerSettings, GenerateSettings])
def test_seed_is_one_that_every_random_generator_takes(service: type[Settings]) -> None:
    assert service.load(seed=2**31 - 1)
    for seed in (2**31, 2**40, 2**64):
        with pytest.raises(SettingsError, match="setting seed"):
            service.load(seed=seed)


@pytest.mark.parametrize("command", ["replay", "tune"])
@pytest.mark.parametrize("value", ["nan", "inf"])
def test_budget_that_is_not_finite_is_refused(command: str, value: str, tmp_path: Path) -> None:
    app = typer.Typer()
    replay.add_to(app)
    tuning.add_to(app)
    (tmp_path / "empty.jsonl").touch()
    of_files = ["--documents", "empty.jsonl", "--events", "empty.jsonl", "--work", "w"]
    with pytest.raises(typer.BadParameter, match=r"no finite number|Input should be"):
        app([command, *of_files, "--budget", value], standalone_mode=False)


def test_bad_value_in_the_environment_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLICKLOOP_PORT", "99999")
    assert "setting port:" in one_line({})
    monkeypatch.delenv("CLICKLOOP_PORT")
    monkeypatch.setenv("CLICKLOOP_KINDS", "a,b")
    assert "kinds" in one_line({})


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"port =", "no valid TOML"),
        (b"\xff\xfe", "no valid TOML"),
        (b"[probe]\nprot = 1\n", "'prot'"),
        (b"probe = 3\n", "not a table"),
        (b"[probe]\nport = 'x'\n", "setting port:"),
    ],
)
def test_bad_file_is_named_in_one_line(content: bytes, part: str, tmp_path: Path) -> None:
    (tmp_path / "clickloop.toml").write_bytes(content)
    assert part in one_line({})


def test_file_that_is_named_must_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLICKLOOP_CONFIG", str(tmp_path / "missing.toml"))
    assert "missing.toml" in one_line({})


def test_settings_do_not_change_once_loaded() -> None:
    with pytest.raises(Exception, match="frozen"):
        ProbeSettings.load().port = 1  # type: ignore[misc]


@pytest.mark.parametrize("servers", ["localhost:abc", "[::1", "kafka:9092,other:x", "kafka..svc:9092"])
def test_a_broker_that_is_no_host_and_port_is_one_line(servers: str) -> None:
    with pytest.raises(SettingsError, match=r"setting bootstrap_servers: .*no host:port list"):
        Settings.load(bootstrap_servers=servers)


@pytest.mark.parametrize("servers", ["kafka", "kafka:9092", "a:1, b:2", "[::1]:9092"])
def test_brokers_are_named_as_kafka_clients_take_them(servers: str) -> None:
    assert Settings.load(bootstrap_servers=servers).bootstrap_servers == servers


def test_a_gate_that_measures_fewer_than_it_needs_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"20 queries \(gate_max_queries\) and needs 50 \(gate_min_queries\)"):
        TrainerSettings.load(gate_max_queries=20)
    assert TrainerSettings.load(gate_max_queries=0).gate_max_queries == 0
    assert TrainerSettings.load(gate_max_queries=20, gate_min_queries=20).gate_max_queries == 20


def test_unknown_storage_protocol_is_a_settings_error() -> None:
    with pytest.raises(SettingsError, match="store_url"):
        ModelStore("nosuchstorage://bucket/models")
