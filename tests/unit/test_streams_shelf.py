"""The shelf against a plain dictionary, which it must never differ from."""

from __future__ import annotations

import random

import pytest

from streams.shelf import BLOCK, YOUNG_BLOCKS, Shelf


@pytest.mark.parametrize("seed", range(6))
def test_whatever_comes_and_goes_it_holds_what_a_dictionary_holds(seed: int) -> None:
    rng = random.Random(seed)
    shelf, model = Shelf(), dict[str, bytes]()
    put = 0
    for step in range(16 * BLOCK * YOUNG_BLOCKS):
        what = rng.random()
        if what < 0.6 or not model:
            name = f"name {put}"
            put += 1
            model[name] = rng.randbytes(rng.randint(0, 40))
            assert shelf.put(name, model[name])
            assert not shelf.put(name, b"another")
        elif what < 0.75:
            name = f"name {rng.randrange(put)}"
            assert shelf.get(name) == model.get(name)
            assert (name in shelf) == (name in model)
        elif what < 0.85 + 0.1 * (seed % 2):
            oldest = next(iter(model))
            assert shelf.oldest() == model[oldest]
            assert shelf.pop_oldest(oldest) == model.pop(oldest)
        elif what < 0.87 + 0.1 * (seed % 2):
            name = rng.choice([*model][: 5 * BLOCK])
            shelf.remove(name)
            del model[name]
        assert len(shelf) == len(model)
        if step % 1000 == 0:
            assert [*shelf] == [*model.values()]
    while model:
        oldest = next(iter(model))
        assert shelf.pop_oldest(oldest) == model.pop(oldest)
    assert shelf.oldest() is None
    assert [*shelf] == []


def test_only_the_oldest_can_be_taken_as_the_oldest() -> None:
    shelf = Shelf()
    shelf.put("a", b"1")
    shelf.put("b", b"2")
    with pytest.raises(KeyError):
        shelf.pop_oldest("b")
    assert [*shelf] == [b"1", b"2"]


def test_what_is_gone_takes_no_room_and_what_is_old_takes_little() -> None:
    shelf = Shelf()
    many = 4 * BLOCK * YOUNG_BLOCKS
    for number in range(many):
        shelf.put(f"name {number}", b"the same words again and again, " * 16)
    frozen = sum(map(len, shelf._cold.values()))
    assert frozen < 512 * len(shelf._cold) * BLOCK / 10
    for number in range(many):
        shelf.pop_oldest(f"name {number}")
    assert not shelf._cold
    assert not shelf._thawed
    assert len(shelf._young) <= 1
