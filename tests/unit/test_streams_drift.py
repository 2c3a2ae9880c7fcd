"""A moved world is seen within three windows; an unmoving one raises no alarm."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from streams.drift import ClickRank, DriftWatch, NewTerms, QueryDistance, Reference, Sample, terms

DIMENSIONS = 32


def window(
    rng: np.random.Generator, n: int, *, topic: int = 0, clicked: float = 0.5, version: str = "v1"
) -> Sample:
    """``n`` queries about one of several topics: sketches around its direction, words of its own (Zipf)."""
    sample = Sample()
    vectors = rng.normal(size=(n, DIMENSIONS))
    vectors[:, topic] += 3.0
    vectors *= 127 / np.abs(vectors).max(axis=1, keepdims=True)
    for vector in vectors.astype(np.int8):
        words = " ".join(f"w{w}" for w in rng.zipf(1.4, size=6) % 800 + 800 * topic)
        sample.query(words, vector.tobytes(), version)
        reciprocal = float(1 / rng.integers(1, 6)) if rng.random() < clicked else 0.0
        sample.reciprocal_rank_sum += reciprocal
        sample.reciprocal_rank_squares += reciprocal * reciprocal
    return sample


@pytest.mark.parametrize("queries", [50, 120])
def test_an_unmoving_world_raises_an_alarm_in_at_most_one_window_of_a_hundred(queries: int) -> None:
    rng = np.random.default_rng(queries)
    alarms, measured = 0, 0
    for seed in range(25):
        watch = DriftWatch(seed=seed)
        for _ in range(11):
            found = watch.measure(window(rng, queries))
            measured += bool(found)
            alarms += any(m.exceeded for m in found)
    assert measured == 250
    assert alarms <= 0.01 * measured


@pytest.mark.parametrize("queries", [50, 150])
def test_a_change_of_topics_is_seen_in_each_of_the_first_three_windows(queries: int) -> None:
    rng = np.random.default_rng(7)
    watch = DriftWatch()
    for _ in range(4):
        watch.measure(window(rng, queries))
    for _ in range(3):
        found = {m.detector: m.exceeded for m in watch.measure(window(rng, queries, topic=1))}
        assert found["query_distance"]
        assert found["new_terms"]


def test_a_change_of_half_the_queries_is_seen_too() -> None:
    rng = np.random.default_rng(8)
    watch = DriftWatch()
    for _ in range(4):
        watch.measure(window(rng, 200))
    mixed = window(rng, 100)
    other = window(rng, 100, topic=1)
    mixed.sketches += other.sketches
    mixed.terms += other.terms
    mixed.queries += other.queries
    assert any(m.exceeded for m in watch.measure(mixed))


def test_falling_click_ranks_are_seen_and_rising_ones_are_no_alarm() -> None:
    rng = np.random.default_rng(9)
    reference = window(rng, 600, clicked=0.6)
    worse = ClickRank().measure(window(rng, 300, clicked=0.3), reference, rng)
    better = ClickRank().measure(window(rng, 300, clicked=0.9), reference, rng)
    assert worse is not None
    assert worse.exceeded
    assert worse.threshold is not None
    assert worse.value < worse.threshold
    assert better is not None
    assert not better.exceeded


def test_a_new_version_starts_the_reference_afresh() -> None:
    rng = np.random.default_rng(10)
    watch = DriftWatch()
    for _ in range(3):
        watch.measure(window(rng, 100))
    assert any(m.exceeded for m in watch.measure(window(rng, 100, topic=1)))
    assert watch.measure(window(rng, 100, topic=1, version="v2")) == [], "the first window of a new version"
    assert not any(m.exceeded for m in watch.measure(window(rng, 100, topic=1, version="v2")))


def test_a_window_that_is_different_does_not_become_the_norm() -> None:
    rng = np.random.default_rng(11)
    watch = DriftWatch()
    for _ in range(3):
        watch.measure(window(rng, 100))
    known = watch.reference.sample.queries
    for _ in range(5):
        assert any(m.exceeded for m in watch.measure(window(rng, 100, topic=1)))
    assert watch.reference.sample.queries == known


def test_too_few_queries_are_not_measured() -> None:
    rng = np.random.default_rng(12)
    watch = DriftWatch()
    watch.measure(window(rng, 200))
    assert watch.measure(window(rng, 49)) == []


def test_queries_without_sketches_are_measured_by_their_words() -> None:
    rng = np.random.default_rng(13)
    watch = DriftWatch()
    bare = [window(rng, 100), window(rng, 100), window(rng, 100, topic=1)]
    for sample in bare:
        sample.sketches = [b""] * len(sample.sketches)
    *_, last = [watch.measure(sample) for sample in bare]
    assert {m.detector for m in last} == {"new_terms", "click_mrr"}
    assert next(m for m in last if m.detector == "new_terms").exceeded


def test_sketches_of_another_length_are_left_out() -> None:
    rng = np.random.default_rng(14)
    one, other = window(rng, 120), window(rng, 120)
    one.sketches[3], one.sketches[4] = b"\x01" * 7, b"\x00" * DIMENSIONS
    found = QueryDistance().measure(one, other, rng)
    assert found is not None
    assert not found.exceeded


def test_the_reference_is_bounded_and_samples_all_windows_alike() -> None:
    rng = np.random.default_rng(15)
    reference = Reference(limit=100)
    for number in range(20):
        sample = Sample()
        for _ in range(50):
            sample.query("word", bytes([number + 1]), "v1")
        reference.add(sample, rng)
    kept = Counter(s[0] for s in reference.sample.sketches)
    assert sum(kept.values()) == 100
    assert len(kept) >= 15
    assert max(kept.values()) <= 15


def test_the_p_value_of_a_window_like_the_reference_is_spread_over_the_unit_interval() -> None:
    rng = np.random.default_rng(16)
    values = []
    for _ in range(60):
        found = NewTerms().measure(window(rng, 80), window(rng, 160), rng)
        assert found is not None
        assert found.p_value is not None
        values.append(found.p_value)
    assert 0.25 < float(np.mean(values)) < 0.75


def test_words_are_told_apart_without_case_and_signs() -> None:
    assert terms("Sort, sort a LIST!") == terms("list sort")
    assert len(terms("naïve Größe 42")) == 3
