"""When two query texts are one."""

from __future__ import annotations

import pytest

from clickloop.text import normal_text


@pytest.mark.parametrize("sign", map(chr, range(128)))
def test_plain_texts_fall_apart_as_all_others_do(sign: str) -> None:
    # Plain ASCII has a way of its own, which is quicker.
    assert normal_text(f"Le{sign}mot").replace("mot", "mót") == normal_text(f"Le{sign}mót")


def test_case_accents_encoding_and_punctuation_make_no_difference() -> None:
    assert normal_text("  Où est le CAFE\u0301?") == normal_text("où est le café")
