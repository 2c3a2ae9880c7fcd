"""Weights as what differs from another file's: the tensors that training changed, and the rest by reference.

A delta is itself a safetensors file. It holds the changed tensors, and in its metadata the whole header of the
file that it stands for, so that putting both together gives that file back byte for byte. The format is read here
by hand (8 bytes of length, a JSON header, the tensors' bytes; https://github.com/huggingface/safetensors), so that
the base install needs no array library.
"""

from __future__ import annotations

import mmap
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct, field

from clickloop.errors import ArtifactError

SUFFIX = ".delta.safetensors"
WHOLE_HEADER = "clickloop.header"
MOST_SHARE = 0.9
"""A delta that is not smaller than this part of the file is not worth its second file."""
_LONGEST_HEADER = 100_000_000

Offsets = tuple[Annotated[int, Meta(ge=0)], Annotated[int, Meta(ge=0)]]


class _Tensor(Struct, frozen=True):
    dtype: str
    shape: list[int]
    data_offsets: Offsets


class _Metadata(Struct, frozen=True):
    """The one part of a header that is no tensor."""

    metadata: dict[str, str] = field(default_factory=dict, name="__metadata__")


@contextmanager
def _opened(path: Path) -> Iterator[tuple[str, dict[str, _Tensor], memoryview]]:
    """A safetensors file's header as it is written, its tensors, and their bytes. Raises ArtifactError."""
    try:
        with path.open("rb") as stream:
            mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path.name} can't be read: {error}") from None
    with mapped:
        length = int.from_bytes(mapped[:8], "little")
        if not 2 <= length <= min(_LONGEST_HEADER, len(mapped) - 8):
            raise ArtifactError(f"{path.name} is no safetensors file")
        header = mapped[8 : 8 + length].decode(errors="replace")
        with memoryview(mapped) as everything, everything[8 + length :] as data:
            yield header, _tensors(header, path.name, len(data)), data


def _tensors(header: str, name: str, size: int) -> dict[str, _Tensor]:
    try:
        parts = msgspec.json.decode(header, type=dict[str, msgspec.Raw])
        parts.pop("__metadata__", None)
        found = {key: msgspec.json.decode(raw, type=_Tensor) for key, raw in parts.items()}
    except (msgspec.DecodeError, RecursionError) as error:
        raise ArtifactError(f"{name} has a header that can't be read: {error}") from None
    for key, tensor in found.items():
        start, end = tensor.data_offsets
        if not start <= end <= size:
            raise ArtifactError(f"{name}: {key} lies outside of the file")
    return found


def write_delta(whole: Path, other: Path, delta: Path) -> bool:
    """Write to ``delta`` what ``whole`` has and ``other`` has not. False, and nothing written, where that is most.

    Raises ArtifactError where one of them is no safetensors file.
    """
    with _opened(whole) as (header, tensors, data), _opened(other) as (_, known, old):
        own: dict[str, _Tensor] = {}
        size = 0
        for name, tensor in sorted(tensors.items(), key=lambda item: item[1].data_offsets):
            start, end = tensor.data_offsets
            if not _same(name, tensor, data, known, old):
                own[name] = _Tensor(tensor.dtype, tensor.shape, (size, size + end - start))
                size += end - start
        metadata = {"__metadata__": {WHOLE_HEADER: header}}
        raw = msgspec.json.encode({**metadata, **own})
        raw += b" " * (-len(raw) % 8)
        if len(raw) + size > MOST_SHARE * whole.stat().st_size:
            return False
        with delta.open("wb") as out:
            out.write(len(raw).to_bytes(8, "little") + raw)
            for name in own:
                start, end = tensors[name].data_offsets
                out.write(data[start:end])
    return True


def _same(name: str, tensor: _Tensor, data: memoryview, known: dict[str, _Tensor], old: memoryview) -> bool:
    before = known.get(name)
    if before is None or (before.dtype, before.shape) != (tensor.dtype, tensor.shape):
        return False
    (start, end), (first, last) = tensor.data_offsets, before.data_offsets
    return end - start == last - first and data[start:end] == old[first:last]


def apply_delta(delta: Path, other: Path, whole: Path) -> None:
    """Write to ``whole`` the file that ``delta`` was made from, given the same ``other``. Raises ArtifactError.

    What comes out is to be checked by its digest: of another ``other`` this makes another file, unseen.
    """
    with _opened(delta) as (header, own, new), _opened(other) as (_, known, old):
        kept = msgspec.json.decode(header, type=_Metadata).metadata.get(WHOLE_HEADER, "")
        tensors = _tensors(kept or "{}", delta.name, sys.maxsize)
        if not tensors:
            raise ArtifactError(f"{delta.name} is no delta: its metadata lack the whole file's header")
        with whole.open("wb") as out:
            out.write(len(kept.encode()).to_bytes(8, "little") + kept.encode())
            for name, tensor in sorted(tensors.items(), key=lambda item: item[1].data_offsets):
                place, source = (own[name], new) if name in own else (known.get(name), old)
                if place is None or (place.dtype, place.shape) != (tensor.dtype, tensor.shape):
                    raise ArtifactError(f"{delta.name}: {name} is neither in it nor in what it differs from")
                start, end = place.data_offsets
                out.write(source[start:end])
