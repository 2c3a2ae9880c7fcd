"""What the documentation shows of sources is so."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from clickloop import topics
from clickloop.errors import MessageError
from clickloop.sources import Sources, mappings_of
from tests.unit.source_records import LOGGED

DOCS = (Path(__file__).parents[2] / "docs" / "sources.md").read_text(encoding="utf-8")


def shown_examples() -> list[tuple[str, str, str]]:
    """(kind, topic, text) of every fenced block that the page marks as an example."""
    return re.findall(r"<!-- (sends|ignored|refused|settings) ?(\w*) -->\n```\w*\n(.*?)```", DOCS, re.DOTALL)


def page_sources() -> Sources:
    settings = next(text for kind, _, text in shown_examples() if kind == "settings")
    return Sources("products", mappings_of(tomllib.loads(settings)["sources"]))


@pytest.mark.parametrize(("kind", "suffix", "text"), [e for e in shown_examples() if e[0] != "settings"])
def test_every_example_of_the_page_is_read_or_refused_as_it_says(kind: str, suffix: str, text: str) -> None:
    topic = next(t for t in topics.TOPICS if t.suffix == suffix)
    *head, body = text.strip().split("\n\n")
    headers = [(n, v.encode()) for n, v in (line.split(": ", 1) for line in "\n".join(head).splitlines())]
    if kind == "refused":
        with pytest.raises(MessageError):
            page_sources().read(body.encode(), headers, topic)
    elif kind == "ignored":
        assert page_sources().read(body.encode(), headers, topic) is None
    else:
        assert page_sources().read(body.encode(), headers, topic, logged=LOGGED).index in {"products", "shop"}


def test_the_page_shows_every_form() -> None:
    shown = [suffix for kind, suffix, _ in shown_examples() if kind == "sends"]
    assert len(shown) >= 9
    assert set(shown) == {"queries", "clicks", "ratings", "documents"}
