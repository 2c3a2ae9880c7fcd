"""A delta gives the file back byte for byte, is as small as what changed, and is refused where it doesn't fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from clickloop.deltas import apply_delta, write_delta
from clickloop.errors import ArtifactError

Tensors = dict[str, np.ndarray]


def weights(seed: int = 0) -> Tensors:
    rng = np.random.default_rng(seed)
    return {f"layer.{i}": rng.normal(size=(64, 64)).astype(np.float32) for i in range(6)}


def saved(path: Path, tensors: Tensors, **metadata: str) -> Path:
    save_file(tensors, path, metadata=metadata)
    return path


def test_a_delta_holds_the_changed_tensors_alone_and_gives_the_file_back(tmp_path: Path) -> None:
    before = saved(tmp_path / "before", weights(), format="pt")
    changed = weights() | {"layer.5": weights(1)["layer.5"]}
    after = saved(tmp_path / "after", changed, format="pt", note="ünïcode")
    assert write_delta(after, before, tmp_path / "delta")
    assert list(load_file(tmp_path / "delta")) == ["layer.5"]
    assert (tmp_path / "delta").stat().st_size < after.stat().st_size / 5
    apply_delta(tmp_path / "delta", before, tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == after.read_bytes()


def test_where_most_has_changed_there_is_no_delta(tmp_path: Path) -> None:
    before, after = saved(tmp_path / "before", weights()), saved(tmp_path / "after", weights(1))
    assert not write_delta(after, before, tmp_path / "delta")
    assert not (tmp_path / "delta").exists()


shapes = st.sampled_from([(1,), (3, 2), (0,), (7,)])
files = st.dictionaries(
    st.sampled_from("abcdef"), st.tuples(shapes, st.sampled_from(["f4", "f2", "i8"]), st.integers(0, 2))
)


@settings(max_examples=60, deadline=None)
@given(one=files, other=files)
def test_any_two_files_give_either_no_delta_or_one_that_is_exact(
    tmp_path_factory: pytest.TempPathFactory, one: dict[str, tuple], other: dict[str, tuple]
) -> None:
    folder = tmp_path_factory.mktemp("d")
    big = {"z": np.arange(1000, dtype=np.float32)}
    paths = [
        saved(folder / name, big | {k: np.full(shape, value, dtype) for k, (shape, dtype, value) in made.items()})
        for name, made in (("after", one), ("before", other))
    ]
    if write_delta(*paths, folder / "delta"):
        apply_delta(folder / "delta", paths[1], folder / "again")
        assert (folder / "again").read_bytes() == paths[0].read_bytes()


def test_against_a_file_without_its_tensors_a_delta_is_refused(tmp_path: Path) -> None:
    before = saved(tmp_path / "before", weights())
    after = saved(tmp_path / "after", weights() | {"layer.0": weights(1)["layer.0"]})
    assert write_delta(after, before, tmp_path / "delta")
    stranger = saved(tmp_path / "stranger", {"other": np.zeros(4, np.float32)})
    with pytest.raises(ArtifactError, match="neither in it"):
        apply_delta(tmp_path / "delta", stranger, tmp_path / "again")
    with pytest.raises(ArtifactError, match="no delta"):
        apply_delta(before, stranger, tmp_path / "again")


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"rubbish",
        b"\xff" * 64,
        (2**40).to_bytes(8, "little") + b"{}",
        (4).to_bytes(8, "little") + b"\xff\xfe{}",
        (6).to_bytes(8, "little") + b'{"a":1' + b"}",
        (54).to_bytes(8, "little") + b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}',
    ],
    ids=repr,
)
def test_what_is_no_safetensors_file_is_an_artifact_error(raw: bytes, tmp_path: Path) -> None:
    good = saved(tmp_path / "good", weights())
    (tmp_path / "bad").write_bytes(raw)
    with pytest.raises(ArtifactError, match="bad"):
        write_delta(tmp_path / "bad", good, tmp_path / "delta")
    with pytest.raises(ArtifactError, match="bad"):
        write_delta(good, tmp_path / "bad", tmp_path / "delta")
    with pytest.raises(ArtifactError, match="bad"):
        apply_delta(tmp_path / "bad", good, tmp_path / "whole")
