"""What an operator types to look at versions and to remove old ones, with no broker anywhere."""

from __future__ import annotations

import base64
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec.structs import replace
from typer.testing import CliRunner, Result

from clickloop import accounts, codec
from clickloop.errors import ArtifactError
from clickloop.events import Estimate, ModelVersionPublished, SplitChanged
from clickloop.model_store import Manifest, ModelStore
from clickloop.versions import versions_app
from tests.unit.version_facts import make_base_model, published, put, split

NO_BROKER = "127.0.0.1:9"


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CLICKLOOP_BOOTSTRAP_SERVERS", NO_BROKER)
    monkeypatch.delenv("CLICKLOOP_CONFIG", raising=False)


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(f"file://{tmp_path}/store", cache=tmp_path / "cache")


@pytest.fixture
def family(store: ModelStore, tmp_path: Path) -> dict[str, Manifest]:
    base = put(store, tmp_path, "base-1", hours=0)
    first = put(store, tmp_path, "adapter-1", "adapter", base, hours=1, settings={"seed": 1, "rate": 0.1})
    second = put(store, tmp_path, "query-encoder-2", "query_encoder", first, hours=2, settings={"seed": 2})
    third = put(store, tmp_path, "adapter-3", "adapter", second, hours=3, verdict="fail")
    return {m.version: m for m in (base, first, second, third)}


def versions(store: ModelStore, *arguments: str) -> Result:
    return CliRunner().invoke(versions_app, [*arguments, "--store-url", store.url])


def test_list_shows_the_oldest_first_with_verdict_change_and_size(
    store: ModelStore, family: dict[str, Manifest]
) -> None:
    done = versions(store, "list")
    assert done.exit_code == 0, done.output
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert [row[0] for row in rows] == list(family)
    assert rows[0][1:6] == ["full", "-", "base-1", "-", "-"]
    assert rows[2][:6] == [
        "query-encoder-2",
        "query_encoder",
        "adapter-1",
        "base-1",
        "pass",
        "+5.0% [+3.0%, +7.0%]",
    ]
    assert rows[2][6:] == ["131.8 kB", "2026-01-01 02:00:00"]


def test_list_as_json_is_one_manifest_a_line(store: ModelStore, family: dict[str, Manifest]) -> None:
    lines = [json.loads(line) for line in versions(store, "list", "--json").stdout.splitlines()]
    assert [line["version"] for line in lines] == list(family)
    assert lines[1]["lineage"]["command_id"] == "command-of-adapter-1"
    assert lines[1]["created"] == "2026-01-01T01:00:00Z"
    assert lines[1]["stored_bytes"] == family["adapter-1"].stored_bytes


def test_list_names_a_manifest_that_it_cannot_read_and_goes_on(
    store: ModelStore, family: dict[str, Manifest], tmp_path: Path
) -> None:
    (tmp_path / "store" / "versions" / "adapter-1" / "manifest.json").write_text("{")
    done = versions(store, "list")
    assert done.exit_code == 0
    assert "adapter-1: manifest.json is not valid" in done.stderr
    assert len(done.stdout.splitlines()) == len(family) - 1


def test_list_says_that_a_store_holds_nothing(tmp_path: Path) -> None:
    """A URL that is wrong by a letter looks like an empty store."""
    done = versions(ModelStore(f"file://{tmp_path}/stoer"), "list")
    assert (done.exit_code, done.stdout) == (0, "")
    assert done.stderr == f"file://{tmp_path}/stoer holds no version\n"


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that any user may enter; then this process is a user who may enter no one else's."""
    monkeypatch.setenv("CLICKLOOP_CONFIG", "")
    user = os.geteuid()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)
        os.seteuid(user)
        for path in Path(folder).rglob("*"):
            path.chmod(0o700)


@pytest.mark.parametrize("closed", [".", "versions", "versions/base-1"])
def test_a_store_that_may_not_be_entered_is_no_empty_one(shared: Path, tmp_path: Path, closed: str) -> None:
    store = ModelStore(f"file://{shared}/store", cache=tmp_path / "cache")
    put(store, tmp_path, "base-1")
    (shared / "store" / closed).chmod(0)
    if os.geteuid() == 0:
        os.seteuid(65534)
    prune = ("prune", "--keep", "1", "--live", "base-1")
    for arguments in (("list",), ("show", "base-1"), prune):
        done = versions(store, *arguments)
        assert (done.exit_code, done.stdout) == (1, ""), arguments
        assert "Permission denied" in done.stderr


def test_a_store_that_is_a_file_is_no_empty_one(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("")
    done = versions(ModelStore(f"file://{tmp_path}/store"), "list")
    assert (done.exit_code, done.stdout) == (1, "")
    assert "Not a directory" in done.stderr


def test_show_tells_origin_files_and_the_gates_table(store: ModelStore, family: dict[str, Manifest]) -> None:
    out = versions(store, "show", "query-encoder-2").stdout
    assert "command-of-query-encoder-2" in out
    assert "clickloop.training-examples.v1/0 [17, 420)" in out
    assert "encoder/model.delta.safetensors 131.8 kB" in out
    assert "mrr_at_10\t0.4000\t0.4200\t+5.0%\t+3.0% to +7.0%" in out
    assert json.loads(versions(store, "show", "adapter-1", "--json").stdout)["parent"] == "base-1"


def test_what_a_manifest_holds_does_not_command_the_terminal(
    store: ModelStore, family: dict[str, Manifest]
) -> None:
    lineage = replace(family["adapter-1"].lineage, base_model="a\x1b[2Jb\nc")
    altered = replace(family["adapter-1"], lineage=lineage)
    store.write("versions/adapter-1/manifest.json", codec.pretty(altered).encode())
    for command in ("show", "lineage"):
        done = versions(store, command, "adapter-1")
        assert done.exit_code == 0
        assert "a\\x1b[2Jb\\nc" in done.stdout
        assert "\x1b" not in done.stdout


def test_lineage_leads_to_the_base_and_says_that_no_broker_tells_the_rollout(
    store: ModelStore, family: dict[str, Manifest]
) -> None:
    done = versions(store, "lineage", "adapter-3")
    assert done.exit_code == 0, done.output
    heads = [line.split(" ")[0] for line in done.stdout.splitlines() if not line.startswith(" ")]
    assert heads == ["adapter-3", "query-encoder-2", "adapter-1", "base-1"]
    assert "310, none dated; 4,495 documents in the index" in done.stdout
    assert "fail on 120 queries" in done.stdout
    assert done.stdout.count(f"rollout    unknown: no Kafka broker answers at {NO_BROKER}") == 4
    lines = [json.loads(line) for line in versions(store, "lineage", "adapter-3", "--json").stdout.splitlines()]
    assert [line["rollout"] for line in lines] == [None] * 4


def test_a_broker_that_was_asked_for_and_does_not_answer_is_an_error(
    store: ModelStore, family: dict[str, Manifest]
) -> None:
    done = versions(store, "lineage", "adapter-3", "--bootstrap-servers", NO_BROKER)
    assert done.exit_code == 1
    assert done.stderr.startswith("clickloop: no Kafka broker answers")


def test_diff_names_what_differs_and_nothing_else(store: ModelStore, family: dict[str, Manifest]) -> None:
    rows = {line.split("\t")[0]: line.split("\t")[1:] for line in
            versions(store, "diff", "adapter-1", "query-encoder-2").stdout.splitlines()}  # fmt: skip
    assert rows["setting seed"] == ["1", "2"]
    assert rows["setting rate"] == ["0.1", "-"]
    assert rows["kind"] == ["adapter", "query_encoder"]
    assert rows["parent"] == ["base-1", "adapter-1"]
    assert "examples" not in rows
    assert "verdict" not in rows
    assert versions(store, "diff", "adapter-1", "adapter-1").stdout == ""


@pytest.mark.parametrize("command", [["show"], ["lineage"], ["diff", "base-1"]], ids=lambda c: c[0])
@pytest.mark.parametrize("name", ["adapter-9", "../x", "A b"])
def test_a_version_that_is_not_there_is_one_line_and_2(
    command: list[str], name: str, store: ModelStore, family: dict[str, Manifest]
) -> None:
    done = versions(store, *command, name)
    assert done.exit_code == 2
    assert len(done.stderr.splitlines()) == 1
    assert name in done.stderr


# Publish the base


@pytest.fixture
def publish_base(store: ModelStore, tmp_path: Path) -> Callable[..., Result]:
    make_base_model(tmp_path, "tiny")

    def publish(**environment: str) -> Result:
        arguments = ["publish-base", "--base-model", str(tmp_path / "tiny"), "--store-url", store.url]
        return CliRunner(env=environment).invoke(versions_app, arguments)

    return publish


@pytest.fixture
def keys() -> tuple[str, str]:
    key = Ed25519PrivateKey.generate()
    raw = (key.private_bytes_raw(), key.public_key().public_bytes_raw())
    return base64.b64encode(raw[0]).decode(), base64.b64encode(raw[1]).decode()


def verified(store: ModelStore, version: str, public_key: str) -> int:
    arguments = ["verify", version, "--store-url", store.url]
    return CliRunner(env={"CLICKLOOP_PUBLIC_KEY": public_key}).invoke(versions_app, arguments).exit_code


@pytest.mark.parametrize("harmed", ["torn", "gone"])
def test_what_is_harmed_in_the_store_is_refused_though_it_was_fine_when_it_was_looked_at_last(
    store: ModelStore, family: dict[str, Manifest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, harmed: str
) -> None:
    kept = tmp_path / "temporary"
    kept.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(kept))
    done = versions(store, "verify", "query-encoder-2")
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.startswith("query-encoder-2: 3 files match their digests")
    file = tmp_path / "store" / "versions" / "base-1" / "encoder" / "model.safetensors"
    if harmed == "torn":
        file.write_bytes(b"half")
    else:
        file.unlink()
    done = versions(store, "verify", "query-encoder-2")
    assert (done.exit_code, done.stdout, len(done.stderr.splitlines())) == (1, "", 1)
    assert done.stderr.startswith("refused: base-1: encoder/model.safetensors is")
    assert list(kept.iterdir()) == [], "what was read is not kept"


def test_a_temporary_folder_that_cannot_be_made_is_one_line(
    store: ModelStore, family: dict[str, Manifest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "file"))
    done = versions(store, "verify", "base-1")
    assert (done.exit_code, done.stdout, len(done.stderr.splitlines())) == (1, "", 1)
    assert done.stderr.startswith("clickloop: [Errno ")


def test_a_folder_that_is_no_model_is_a_users_mistake(store: ModelStore, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = versions(store, "publish-base", "--base-model", str(tmp_path / "empty"))
    assert done.exit_code == 2
    assert done.stderr.endswith("is no sentence-transformers model: it has no modules.json\n")


def test_a_base_that_is_there_unsigned_or_signed_by_another_is_signed(
    store: ModelStore, publish_base: Callable[..., Result], keys: tuple[str, str], tmp_path: Path
) -> None:
    assert publish_base().exit_code == 0
    (base,) = store.versions()
    before = store.published(base)
    assert before.signature == ""
    stranger = base64.b64encode(Ed25519PrivateKey.generate().private_bytes_raw()).decode()
    for private in (stranger, keys[0], keys[0]):
        done = publish_base(CLICKLOOP_PRIVATE_KEY=private)
        assert (done.exit_code, done.stdout) == (0, f"{before.uri}\n"), done.stderr
    ModelStore(store.url, cache=tmp_path / "c", public_key=keys[1]).fetch(base, digest=before.digest)
    assert publish_base().exit_code == 0
    assert verified(store, base, keys[1]) == 0, "whoever has no key leaves the signature"


def test_a_base_that_is_not_ours_is_never_signed(
    store: ModelStore, publish_base: Callable[..., Result], keys: tuple[str, str], tmp_path: Path
) -> None:
    publish_base()
    (base,) = store.versions()
    path = tmp_path / "store" / "versions" / base / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b'"full"', b'"adapter"'))
    done = publish_base(CLICKLOOP_PRIVATE_KEY=keys[0])
    assert (done.exit_code, done.stdout, len(done.stderr.splitlines())) == (1, "", 1)
    assert "take it away and publish again" in done.stderr
    assert store.published(base).signature == ""
    assert publish_base(CLICKLOOP_PRIVATE_KEY="no key").exit_code == 2


# Prune


def test_prune_without_a_broker_wants_to_be_told_what_is_live(
    store: ModelStore, family: dict[str, Manifest]
) -> None:
    done = versions(store, "prune", "--keep", "1")
    assert done.exit_code == 2
    assert "what is live can't be told" in done.stderr
    assert "--live" in done.stderr
    assert versions(store, "prune", "--keep", "1", "--live", "adapter-9").exit_code == 2
    assert versions(store, "prune", "--keep", "0", "--live", "base-1").exit_code == 2
    assert sorted(store.versions()) == sorted(family)


@pytest.mark.parametrize("harmed", ['{"schema_version": 9}', "{"], ids=["of a newer release", "torn"])
@pytest.mark.parametrize("how", [(), ("--dry-run",)], ids=["prune", "dry run"])
def test_prune_removes_nothing_while_a_version_cannot_be_read(
    store: ModelStore, family: dict[str, Manifest], tmp_path: Path, harmed: str, how: tuple[str, ...]
) -> None:
    """What it is made of might be what goes."""
    put(store, tmp_path, "adapter-4", "adapter", family["base-1"], hours=4, verdict="fail")
    (tmp_path / "store" / "versions" / "query-encoder-2" / "manifest.json").write_text(harmed)
    done = versions(store, "prune", "--keep", "1", "--live", "adapter-4", *how)
    assert (done.exit_code, done.stdout, len(done.stderr.splitlines())) == (1, "", 1)
    assert done.stderr.startswith("clickloop: query-encoder-2: ")
    assert "nothing is removed" in done.stderr
    assert sorted(store.versions()) == sorted([*family, "adapter-4"])


def test_prune_wants_all_that_an_index_of_this_store_serves(
    store: ModelStore, family: dict[str, Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    def prune(*splits: SplitChanged) -> Result:
        async def told(_: object) -> list[SplitChanged]:
            return list(splits)

        async def none(_: object) -> list[ModelVersionPublished]:
            return []

        monkeypatch.setattr("clickloop.versions._splits", told)
        monkeypatch.setattr("clickloop.versions._published", none)
        return versions(store, "prune", "--keep", "1")

    live = split(1, "adapter-1")
    half = prune(live, split(1, "base-1", "adapter-9", index="shoes"))
    assert half.exit_code == 2
    assert "no adapter-9, which gets traffic of index 'shoes'" in half.stderr
    assert "no adapter-9, which gets traffic of index 'default'" in prune(split(1, "adapter-9")).stderr
    assert sorted(store.versions()) == sorted(family)
    other = prune(live, split(1, "adapter-9", index="shoes"), split(1, "query-encoder-2", index="books"))
    assert other.exit_code == 0, other.stderr
    assert f"nothing that index 'shoes' serves is in {store.url}" in other.stderr
    assert sorted(store.versions()) == sorted(family)


def test_prune_leaves_what_an_app_of_ones_own_took_where_no_node_asks_for_splits(
    store: ModelStore, family: dict[str, Manifest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = family["base-1"]
    old = put(store, tmp_path, "adapter-of-shoes-1", "adapter", base, hours=0.3)
    live = put(store, tmp_path, "adapter-of-shoes-2", "adapter", base, hours=0.4)
    failed = put(store, tmp_path, "adapter-of-shoes-3", "adapter", base, hours=0.5, verdict="fail")
    newest = put(store, tmp_path, "adapter-4", "adapter", base, hours=4)

    async def splits(_: object) -> list[SplitChanged]:
        return [split(1, "base-1"), split(2, "adapter-4")]

    async def announced(_: object) -> list[ModelVersionPublished]:
        # As compaction leaves them: in no order that tells.
        of_shoes = [published(m, index="shoes", hours=h) for m, h in ((live, 0.4), (old, 0.3), (failed, 0.5))]
        return [*of_shoes, published(base, index="shoes", hours=9), published(newest, hours=4)]

    monkeypatch.setattr("clickloop.versions._splits", splits)
    monkeypatch.setattr("clickloop.versions._published", announced)
    done = versions(store, "prune", "--keep", "1")
    assert done.exit_code == 0, done.stderr
    rows = {line.split("\t")[0]: line.split("\t")[1:] for line in done.stdout.splitlines()}
    assert rows["adapter-of-shoes-2"][0] == "stays"
    assert rows["adapter-of-shoes-2"][2] == "passed last in an index without splits"
    assert rows["adapter-of-shoes-1"][0] == "removed"
    assert "adapter-of-shoes-2" in store.versions()


def test_dry_run_says_what_would_go_and_leaves_it(store: ModelStore, family: dict[str, Manifest]) -> None:
    done = versions(store, "prune", "--keep", "1", "--live", "query-encoder-2", "--dry-run")
    assert done.exit_code == 0, done.output
    fates = {line.split("\t")[0]: line.split("\t")[1] for line in done.stdout.splitlines()}
    assert set(fates.values()) == {"stays"}
    done = versions(store, "prune", "--keep", "1", "--live", "base-1", "--dry-run")
    assert "0 would go" in done.stderr, "what passed after the live version may be next"
    assert sorted(store.versions()) == sorted(family)


def test_what_was_pruned_is_gone_with_its_vectors_and_stays_in_the_lineage(
    store: ModelStore, family: dict[str, Manifest], tmp_path: Path
) -> None:
    child = put(store, tmp_path, "adapter-4", "adapter", family["query-encoder-2"], hours=4)
    live = put(store, tmp_path, "adapter-5", "adapter", child, hours=5)
    vectors = tmp_path / "store" / "vectors" / "adapter-3-pieces"
    vectors.mkdir(parents=True)
    (vectors / "x.safetensors").write_bytes(b"x")
    done = versions(store, "prune", "--keep", "1", "--live", live.version)
    assert done.exit_code == 0, done.output
    assert store.versions() == ["adapter-4", "adapter-5", "base-1", "query-encoder-2"]
    assert sorted(p.name for p in (tmp_path / "store" / "versions").iterdir()) == store.versions()
    assert not vectors.exists()
    for name in store.versions():
        store.fetch(name)
    with pytest.raises(ArtifactError, match="no complete artifact"):
        store.fetch("adapter-1")
    out = versions(store, "lineage", "adapter-5").stdout
    assert "adapter-1 (adapter), removed from the store" in out
    assert "command-of-adapter-1" in out


def test_pruning_again_finds_nothing_more(store: ModelStore, family: dict[str, Manifest]) -> None:
    arguments = ("prune", "--keep", "1", "--live", "adapter-3")
    assert "1 removed" in versions(store, *arguments).stderr
    assert "0 removed" in versions(store, *arguments).stderr


# Leftovers


def left_by_a_killed_publisher(root: Path, *, minutes: float) -> Path:
    folder = root / "store" / "versions" / f".adapter-9-{'0' * 31}{int(minutes) % 10}"
    (folder / "encoder").mkdir(parents=True)
    (folder / "encoder" / "model.safetensors").write_bytes(b"half")
    at = (datetime.now(UTC) - timedelta(minutes=minutes)).timestamp()
    os.utime(folder / "encoder" / "model.safetensors", (at, at))
    return folder


def test_a_later_publish_sweeps_what_a_killed_one_left_but_none_in_flight(
    store: ModelStore, family: dict[str, Manifest], tmp_path: Path
) -> None:
    old = left_by_a_killed_publisher(tmp_path, minutes=61)
    new = left_by_a_killed_publisher(tmp_path, minutes=59)
    notes = tmp_path / "store" / "versions" / ".notes"
    notes.mkdir()
    os.utime(notes, (0, 0))
    torn = tmp_path / "store" / "vectors" / "base-1" / ".x.safetensors.0123"
    torn.parent.mkdir(parents=True)
    torn.write_bytes(b"half")
    os.utime(torn, (0, 0))
    put(store, tmp_path, "adapter-6", "adapter", family["base-1"])
    assert (old.exists(), new.exists(), notes.exists(), torn.exists()) == (False, True, True, False)


def test_on_an_object_store_a_folder_without_a_manifest_is_left_behind(tmp_path: Path) -> None:
    store = ModelStore(f"memory://{tmp_path.name}/store", cache=tmp_path / "cache")
    base = put(store, tmp_path, "base-1")
    store._fs.pipe_file(f"{store._root}/versions/adapter-9/adapter.safetensors", b"half")
    now = datetime.now(UTC)
    assert store.sweep(now=now + timedelta(minutes=59)) == []
    assert store.sweep(now=now + timedelta(minutes=61)) == ["adapter-9"]
    assert store.versions() == ["base-1"]
    put(store, tmp_path, "adapter-1", "adapter", base)
    store.remove("adapter-1")
    assert store.versions() == ["base-1"]
    found = store.remembered("adapter-1")
    assert found is not None
    assert found.parent == "base-1"


def test_where_nothing_was_found_before_a_change_is_no_percentage() -> None:
    there, before = (Estimate(before=b, after=0.5, change=0.25, low=0.2, high=0.3) for b in (0.4, 0.0))
    assert (accounts.changed(there), accounts.interval(there)) == ("+25.0%", "+20.0% to +30.0%")
    assert (accounts.changed(before), accounts.interval(before)) == ("+0.2500", "+0.2000 to +0.3000")
    assert accounts.change(before) == "+0.2500 [+0.2000, +0.3000]"
