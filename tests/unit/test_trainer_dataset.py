from __future__ import annotations

from dataclasses import replace

import msgspec
import numpy as np
import pytest

from clickloop.events import ExampleFormed
from clickloop.text import normal_text
from tests.unit.trainer_facts import documents, example, world
from trainer.dataset import PASSED_OVER, RATED, Clicks, after_synthetic, moments, prepare
from trainer.influence import proportionate


def rows(clicks: Clicks) -> dict[tuple[str, int], float]:
    return {
        (clicks.queries[q], int(d)): float(e)
        for q, d, e in zip(clicks.query, clicks.document, clicks.evidence, strict=True)
    }


def test_clicks_for_one_text_in_another_spelling_are_evidence_for_one_query():
    prepared = prepare(
        [example("Read a file", "d0001", number=1), example("  read a FILE!", "d0001", number=2)], documents(3)
    )
    assert rows(prepared.clicks) == {("Read a file", 1): 2.0}
    assert normal_text("Read a file") == normal_text("  read a FILE!")


def test_weight_undoes_position_and_evidence_does_not_know_it():
    clicks = prepare(
        [example("one", "d0000", number=1, position=1), example("two", "d0001", number=2, position=4)],
        documents(3),
    ).clicks
    assert clicks.evidence.tolist() == [1.0, 1.0]
    assert clicks.weight[1] == pytest.approx(4 * clicks.weight[0])


def test_a_good_rating_on_top_weighs_a_few_clicks_and_not_as_much_as_a_click_far_down():
    clicks = prepare(
        [
            example("one", "d0000", number=1, position=1),
            example("two", "d0001", number=2, position=1, rating=5, weight=1.0),
        ],
        documents(3),
    ).clicks
    assert clicks.weight[1] == pytest.approx(RATED * clicks.weight[0])


def test_an_opinion_without_a_click_is_corrected_for_position_as_a_click_is():
    given = [
        example(f"q{n}", f"d{n:04}", number=n, position=place, rating=5, clicks=0, weight=1.0, trust=1.0)
        for n, place in enumerate((1, 4))
    ]
    clicks = prepare(given, documents(3)).clicks
    assert clicks.weight[1] == pytest.approx(4 * clicks.weight[0])
    assert clicks.evidence.tolist() == [RATED, RATED]


def test_a_distrusted_click_is_less_evidence():
    clicks = prepare(
        [
            example("one", "d0000", number=1, position=2),
            example("two", "d0001", number=2, position=2, weight=0.05),
        ],
        documents(3),
    ).clicks
    assert clicks.evidence.tolist() == pytest.approx([1.0, 0.25])


def test_an_example_that_says_how_far_it_is_trusted_is_taken_at_its_word() -> None:
    clicks = prepare(
        [
            example("one", "d0000", number=1, position=4, weight=0.4, trust=1.0),
            example("two", "d0001", number=2, position=4, weight=0.2, trust=0.5),
            example("three", "d0002", number=3, position=1, weight=1.0, trust=1.0, rating=5),
        ],
        documents(3),
    ).clicks
    assert clicks.evidence.tolist() == pytest.approx([1.0, 0.5, RATED])
    assert clicks.weight.tolist() == pytest.approx([0.4, 0.2, RATED * 0.1])


def test_what_swaps_tell_takes_the_place_of_one_over_the_position() -> None:
    flat = [
        example(f"q{n}", "d0000", number=n, position=1 + n % 2, trust=1.0, propensity=p, swapped=s)
        for n, (p, s) in enumerate([(0.5, 1), (0.5, 1), (0.5, None), (0.5, None)] * 300)
    ]
    ratios = {}
    for bias in ("estimated", "inverse_rank", "off"):
        clicks = prepare(flat, documents(1), bias=bias).clicks  # type: ignore[arg-type]
        ratios[bias] = float(clicks.weight[1] / clicks.weight[0])
    assert ratios == pytest.approx({"estimated": 1.0, "inverse_rank": 2.0, "off": 1.0}, rel=0.1)


def test_a_document_that_claims_out_of_proportion_teaches_no_more_than_the_average_one() -> None:
    people = [
        example(f"q{n}", f"d{n % 40:04}", number=n, key=f"user-{n % 60}", weight=1.0, trust=1.0)
        for n in range(400)
    ]
    farm = [
        example(f"f{n}", "d0007", number=1000 + n, key=f"farm-{n}", weight=float(n < 50), trust=float(n < 50))
        for n in range(300)
    ]
    clicks = prepare([*people, *farm], documents(40), max_document_share=0.02).clicks
    pushed = clicks.document == 7
    assert 8 <= clicks.evidence[pushed].sum() <= 18
    assert not [text for text in clicks.queries if text.startswith("f")], "those go first who click nothing else"
    assert len(prepare([*people, *farm], documents(40)).clicks) == 450
    assert len(prepare(people, documents(40), max_document_share=0.02).clicks) == 400, "people lose nothing"


def claims(doc_id: str, count: int, key: str, *, first: int, **more: object) -> list[ExampleFormed]:
    """Of as many keys, each on a query of its own."""
    made = [example(f"{key} {n}", doc_id, number=first + n, key=f"{key}-{n}", weight=1.0) for n in range(count)]
    return [msgspec.structs.replace(one, **more) for one in made]


def crowd(each: int) -> list[ExampleFormed]:
    """Claims of people on forty documents; a person's are on one of each ten."""
    return [
        example(f"query {n}", f"d{n % 40:04}", number=n, key=f"user-{n % 10}", weight=1.0)
        for n in range(40 * each)
    ]


@pytest.mark.parametrize(
    ("each", "share", "count", "left"),
    [(1, 0.02, 20, 20), (1, 0.02, 21, 1), (3, 0.02, 30, 30), (3, 0.02, 31, 3), (1, 0.5, 40, 40), (1, 0.5, 41, 1)],
    ids=["free", "beyond it", "of ten times the median", "beyond that", "of a share", "beyond it all"],
)
def test_a_document_claims_too_much_beyond_all_three_limits(each: int, share: float, count: int, left: int):
    pushed = claims("d0040", count, "farm", first=1000)
    found = proportionate([*crowd(each), *pushed], max_share=share)
    assert sum(one.doc_id == "d0040" for one in found) == left
    assert len(found) == 40 * each + left


def test_claims_for_a_document_and_against_it_and_what_was_made_up_are_not_added_together():
    given = [
        *crowd(1),
        *claims("d0040", 15, "fan", first=1000),
        *claims("d0040", 15, "foe", first=2000, label="negative"),
        *claims("d0040", 30, "made", first=3000, origin="synthetic"),
    ]
    assert proportionate(given, max_share=0.02) == given


def test_those_stay_whose_keys_are_believed_to_have_clicked_the_most_else():
    hidden = [example(f"hidden {n}", f"d{n:04}", number=500 + n, key=f"farm-{n}", weight=0.0) for n in range(40)]
    nameless = [msgspec.structs.replace(one, split_key="") for one in claims("d0040", 20, "none", first=3000)]
    honest = claims("d0040", 3, "user", first=4000)
    given = [*crowd(5), *hidden, *nameless, example("bare", "d0000", number=900, weight=1.0)]
    given += [*claims("d0040", 100, "farm", first=1000), *honest]
    assert [one for one in proportionate(given, max_share=0.02) if one.doc_id == "d0040"] == honest


def test_whose_key_clicked_more_goes_before_whose_clicked_less():
    broad = [example(f"broad {n}", f"d{n:04}", number=500 + n, key="broad", weight=1.0) for n in range(39)]
    pushed = [
        *claims("d0040", 30, "user", first=1000),
        example("b", "d0040", number=2000, key="broad", weight=1.0),
    ]
    found = proportionate([*crowd(1), *broad, *pushed], max_share=0.02)
    left = [one.split_key for one in found if one.doc_id == "d0040"]
    assert left[-1] == "broad"
    assert len(left) == 2


def test_what_was_taken_away_for_the_documents_sake_alone_is_given_back():
    said = [(0.0, "document_share"), (0.5, "too_fast"), (0.0, "repeat")]
    people = [
        msgspec.structs.replace(one, weight=weight, trust=weight, reason=reason)
        for one, (weight, reason) in zip(claims("d0040", 3, "user", first=4000), said, strict=True)
    ]
    found = proportionate([*crowd(5), *claims("d0040", 100, "farm", first=1000), *people], max_share=0.02)
    left = [(one.weight, one.trust, one.reason) for one in found if one.doc_id == "d0040"]
    assert left == [(1.0, 1.0, ""), (0.5, 0.5, "too_fast")]


def test_a_flood_of_low_ratings_is_held_to_what_people_say_against_other_documents():
    people = [
        example(f"query {n}", f"d{n % 40:04}", number=n, label="negative", rating=1, weight=1.0, key=f"user-{n}")
        for n in range(80)
    ]
    flood = [
        example(
            f"query {n % 9}", "d0007", number=1000 + n, label="negative", rating=1, weight=1.0, key=f"farm-{n}"
        )
        for n in range(200)
    ]
    shown = example("query 0", "d0000", number=5000)

    def against(examples: list[ExampleFormed], document: int) -> float:
        clicks = prepare([*examples, shown], documents(40), max_document_share=0.02).clicks
        return sum(of_it.get(document, 0.0) for of_it in clicks.unwanted.values())

    assert against(people, 7) == against(people, 8) == 2 * RATED
    assert against([*people, *flood], 8) == 2 * RATED
    assert against([*people, *flood], 7) <= 3 * RATED


def test_what_was_passed_over_or_rated_low_is_unwanted_as_far_as_it_was_not_clicked():
    clicks = prepare(
        [
            example("one", "d0002", number=1, position=3, negatives=("d0000", "d0001")),
            example("one", "d0003", number=1, label="negative", rating=1, weight=1.0),
            example("one", "d0000", number=2),
        ],
        documents(5),
    ).clicks
    assert rows(clicks) == {("one", 0): 1.0, ("one", 2): 1.0}
    assert clicks.unwanted == {0: {1: PASSED_OVER, 3: RATED}}


def test_of_two_results_the_worse_one_is_unwanted_as_far_as_the_preference_is_strong():
    chosen = example("one", "d0002", position=3, negatives=("d0000", "d0001"), clicks=0, trust=0.6)
    chosen = msgspec.structs.replace(chosen, worse={"d0000": 0.6, "d0001": 0.6})
    rated = example("one", "d0001", number=2, label="negative", rating=1, weight=1.0)
    clicks = prepare(
        [chosen, rated, *[example("one", "d0001", number=3 + n) for n in range(2)]], documents(5)
    ).clicks
    assert clicks.unwanted == {0: {0: 0.6, 1: pytest.approx(0.6 + RATED - 2.0)}}


@pytest.mark.parametrize("clicks", [0, 1], ids=["preferred alone", "clicked as well"])
def test_what_was_named_as_worse_counts_what_that_weighs_and_what_was_passed_over_a_tenth(clicks: int):
    chosen = example("one", "d0002", position=3, negatives=("d0000", "d0001"), clicks=clicks, trust=1.0)
    chosen = msgspec.structs.replace(chosen, worse={"d0001": 0.7})
    assert prepare([chosen], documents(5)).clicks.unwanted == {0: {0: PASSED_OVER, 1: 0.7}}


def test_an_example_from_before_preferences_were_named_speaks_against_all_its_negatives_alike():
    chosen = example("one", "d0002", position=3, negatives=("d0000", "d0001"), clicks=0, trust=1.0)
    assert prepare([chosen], documents(5)).clicks.unwanted == {0: {0: PASSED_OVER, 1: PASSED_OVER}}


@pytest.mark.parametrize(
    ("clicks", "believed", "strength", "trust"),
    [(0, 0.2, 0.3, 0.3), (1, 0.2, 0.3, 1.0), (0, None, 0.4, 0.4)],
    ids=["preferred alone", "clicked as well", "no other preference"],
)
def test_what_was_preferred_to_a_document_is_given_back_as_strong_as_preferences_are(
    clicks: int, believed: float | None, strength: float, trust: float
):
    made = {"weight": 0.0, "trust": 0.0, "reason": "document_share", "clicks": clicks}
    chosen = claims("d0040", 1, "user", first=4000, negatives=["d0001", "d0002"], **made)
    chosen = [msgspec.structs.replace(one, worse={"d0001": 0.0, "d0002": 0.4}) for one in chosen]
    people = crowd(5)
    if believed:
        people[0] = msgspec.structs.replace(people[0], worse={"d0003": believed}, trust=believed)
    found = proportionate([*people, *claims("d0040", 100, "farm", first=1000), *chosen], max_share=0.02)
    [left] = [one for one in found if one.doc_id == "d0040"]
    assert left.worse == {"d0001": pytest.approx(strength), "d0002": 0.4}
    assert (left.trust, left.weight) == (pytest.approx(trust), pytest.approx(trust))


def test_examples_of_documents_that_are_gone_are_counted():
    prepared = prepare([example("one", "gone"), example("two", "d0000", number=1)], documents(1))
    assert prepared.unknown_documents == 1
    assert len(prepared.clicks) == 1


def test_no_query_is_on_both_sides_of_a_moment_and_the_later_side_is_later():
    clicks, _ = world(queries=200)
    for known, later in moments(clicks, share=0.25, count=3):
        asked = [clicks.queries.index(q) for q in known.queries]
        after = [clicks.queries.index(q) for q in later.queries]
        assert max(asked) < min(after)
        assert len(known) + len(later) <= len(clicks)


def test_moments_come_oldest_first_and_each_later_side_holds_its_share():
    clicks, _ = world(queries=400)
    past = moments(clicks, share=0.25, count=3)
    sizes = [len(known) for known, _ in past]
    assert sizes == sorted(sizes)
    for _, later in past:
        assert len(later) / len(clicks) == pytest.approx(0.25, abs=0.03)


def test_the_newest_click_is_in_the_last_hold_out():
    clicks, _ = world(queries=100)
    _, later = moments(clicks, share=0.25, count=2)[-1]
    assert clicks.queries[clicks.query.max()] in later.queries


def test_a_near_duplicate_of_a_known_query_is_not_held_out():
    clicks, _ = world(queries=100)
    copied = clicks.vectors.copy()
    copied[99] = copied[0]
    known, later = moments(replace(clicks, vectors=copied), share=0.25, count=1)[0]
    assert "query 0" in known.queries
    assert "query 99" not in later.queries


def test_what_was_learnt_before_is_known_at_every_moment_and_in_no_share():
    clicks, _ = world(queries=400)
    # One of the older ones was asked after some of the new ones.
    older = {*range(320), 350}
    past = moments(clicks, share=0.25, count=3, older=older)
    new_rows = int((~np.isin(clicks.query, sorted(older))).sum())
    assert len(past) == 3
    for known, later in past:
        asked = {clicks.queries.index(q) for q in known.queries}
        after = {clicks.queries.index(q) for q in later.queries}
        assert asked >= older
        assert not after & older
        assert max(asked - older) < min(after)
        assert len(later) / new_rows == pytest.approx(0.25, abs=0.05)


def test_where_hardly_anything_is_new_there_are_fewer_moments_and_where_nothing_is_there_are_none():
    clicks, _ = world(queries=100)
    asked = np.unique(clicks.query).tolist()
    [(known, later)] = moments(clicks, share=0.25, count=3, older=set(range(100)) - {asked[-1]})
    assert later.queries == [clicks.queries[asked[-1]]]
    assert len(known.queries) == 99
    assert moments(clicks, share=0.25, count=3, older=set(range(100))) == []


def test_a_log_too_small_to_cut_gives_no_moments():
    clicks, _ = world(queries=100)
    assert moments(clicks.of_queries([3]), share=0.25, count=3) == []
    assert moments(clicks.of_queries([]), share=0.25, count=3) == []


def test_choosing_queries_keeps_their_rows_and_vectors_together():
    clicks, _ = world(queries=50)
    part = clicks.of_queries([7, 3])
    assert part.queries == ["query 3", "query 7"]
    assert np.array_equal(part.vectors, clicks.vectors[[3, 7]])
    assert set(part.query.tolist()) <= {0, 1}


def test_synthetic_examples_are_never_held_out_and_weigh_what_they_say():
    clicked = [example(f"query {n}", f"d{n:04}", number=n) for n in range(20)]
    made = [example(f"made {n}", f"d{n:04}", number=n, weight=0.1, origin="synthetic") for n in range(30)]
    prepared = prepare([*clicked, *made], documents(30))
    assert len(prepared.clicks.queries) == 20
    assert not any(query.startswith("made") for query in prepared.clicks.queries)
    assert prepared.synthetic.evidence.tolist() == pytest.approx([0.1] * 30)
    assert (prepared.positives, prepared.negatives) == (50, 0)
    vectors = np.random.default_rng(0).normal(size=(20, 200)).astype(np.float32)
    clicks = replace(prepared.clicks, vectors=vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    synthetic = replace(prepared.synthetic, vectors=np.ones((30, 200), dtype=np.float32))
    for known, later in moments(clicks, share=0.25, count=3):
        everything = after_synthetic(synthetic, known)
        assert everything.queries[:30] == prepared.synthetic.queries
        assert everything.queries[30:] == known.queries
        assert len(everything.vectors) == len(everything.queries)
        assert rows(everything).keys() >= rows(known).keys()
        assert not any(query.startswith("made") for query in later.queries)


def test_synthetic_examples_of_one_text_are_one_query_and_count_each():
    made = [
        example(text, f"d{n:04}", number=n, weight=0.1, origin="synthetic")
        for n, text in enumerate(("Trail shoe", "tent", "trail shoe"))
    ]
    synthetic = prepare(made, documents(3)).synthetic
    assert synthetic.queries == ["Trail shoe", "tent"]
    assert rows(synthetic).keys() == {("Trail shoe", 0), ("Trail shoe", 2), ("tent", 1)}
    assert synthetic.counted().tolist() == [2, 1]


def test_examples_are_counted_by_label_for_the_minimums():
    prepared = prepare(
        [
            example("one", "d0000", number=1),
            example("two", "d0001", number=2, label="negative", rating=1.0),
            example("three", "gone", number=3),
            example("four", "d0002", number=4, weight=0.0),
        ],
        documents(3),
    )
    assert (prepared.positives, prepared.negatives, prepared.unknown_documents) == (3, 1, 1)


def test_a_query_belongs_to_the_slices_of_its_clicks_also_after_time_is_cut():
    made = [
        msgspec.structs.replace(example(f"query number {n}", "d0001", number=n), domain="shoes", difficulty="hard")
        for n in range(3)
    ]
    made[2] = msgspec.structs.replace(made[2], domain="", difficulty=None)
    clicks = prepare(made, documents(3)).clicks
    both = frozenset({"domain shoes", "difficulty hard"})
    assert [clicks.slices.of_query(query) for query in range(3)] == [both, both, frozenset()]
    later = clicks.of_queries([1, 2]).slices
    assert [later.of_query(query) for query in range(2)] == [both, frozenset()]


def test_the_examples_of_a_part_of_the_queries_are_counted_and_not_estimated() -> None:
    """400 of 500 clicks ask one thing; each of the others asks another."""
    asked = ["sort a list"] * 400 + [f"query {n}" for n in range(100)]
    given = [example(text, f"d{n % 7:04}", number=n) for n, text in enumerate(asked)]
    clicks = prepare(given, documents(7)).clicks
    first = clicks.of_queries(range(75))
    assert (clicks.counted().sum(), first.counted().sum()) == (500, 474)
    assert clicks.of_queries([0]).counted().tolist() == [400]
    assert after_synthetic(clicks.of_queries([3]), first).counted().sum() == 475
