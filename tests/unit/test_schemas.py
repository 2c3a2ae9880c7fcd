"""The Python types, the schemas, the examples, the AsyncAPI document and the golden bytes say the same."""

from __future__ import annotations

import base64
import binascii
import json
import re
from datetime import UTC, datetime, timedelta, timezone
from functools import cache
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import msgspec
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from jsonschema import Draft202012Validator, FormatChecker
from jsonschema.exceptions import ValidationError
from jsonschema.validators import extend

from clickloop import codec, topics
from clickloop.errors import MessageError
from clickloop.events import Message
from tests.unit.golden_messages import GOLDEN

SCHEMAS = Path(__file__).parents[2] / "schemas"
EXAMPLES = sorted((SCHEMAS / "examples").rglob("*.json"))
SUFFIXES = [topic.suffix for topic in topics.TOPICS]
BY_SUFFIX = {topic.suffix: topic for topic in topics.TOPICS}
TYPES: list[type[Message]] = [t for topic in topics.TOPICS for t in topic.types]
TOPIC_OF = {t.__name__: topic for topic in topics.TOPICS for t in topic.types}

# --- the JSON Schema side: 2020-12, with the checks that the vocabulary leaves to the application

_formats = FormatChecker(formats=())
_RFC3339 = re.compile(
    r"(\d{4}-\d{2}-\d{2})[Tt](\d{2}:\d{2}:\d{2})(\.\d+)?([Zz]|[+-]([01]\d|2[0-3]):[0-5]\d)", re.ASCII
)


@_formats.checks("date-time", raises=ValueError)
def _is_rfc3339(value: object) -> bool:
    if not isinstance(value, str):
        return True
    match = _RFC3339.fullmatch(value)
    return match is not None and bool(datetime.fromisoformat(f"{match[1]}T{match[2]}"))


def _content_encoding(_: Any, encoding: str, value: object, __: Any) -> Any:
    assert encoding == "base64"
    if isinstance(value, str):
        try:
            base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError) as error:
            yield ValidationError(f"no base64: {error}")


_Validator = extend(
    Draft202012Validator,
    {"contentEncoding": _content_encoding},
    # JSON Schema takes 1.0 for an integer; the contract (README) asks for integers without a fraction.
    type_checker=Draft202012Validator.TYPE_CHECKER.redefine(
        "integer", lambda _, value: isinstance(value, int) and not isinstance(value, bool)
    ),
)


def schema(suffix: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((SCHEMAS / f"{suffix}.v1.schema.json").read_text(encoding="utf-8"))
    return loaded


def strict_validator(schema: dict[str, Any]) -> Any:
    return _Validator(schema, format_checker=_formats)


@cache
def validator(suffix: str) -> Any:
    return strict_validator(schema(suffix))


def schema_accepts(suffix: str, value: Any) -> bool:
    return bool(validator(suffix).is_valid(value))


def codec_accepts(suffix: str, raw: bytes) -> bool:
    try:
        codec.decode(raw, *BY_SUFFIX[suffix].types)
    except MessageError:
        return False
    return True


# --- every topic has its card


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_topic_has_a_schema_and_examples_good_and_bad(suffix: str) -> None:
    Draft202012Validator.check_schema(schema(suffix))
    names = [p.name for p in EXAMPLES if p.parent.name == suffix]
    assert sum(n.startswith("valid-") for n in names) >= 2
    assert sum(n.startswith("invalid-") for n in names) >= 2
    assert all(n.startswith(("valid-", "invalid-")) for n in names)


def test_there_is_no_schema_or_example_of_a_topic_that_does_not_exist() -> None:
    assert {p.name.removesuffix(".v1.schema.json") for p in SCHEMAS.glob("*.schema.json")} == set(SUFFIXES)
    assert {p.name for p in (SCHEMAS / "examples").iterdir()} == set(SUFFIXES)


def test_schemas_hold_data_only() -> None:
    kinds = {p.suffix for p in SCHEMAS.rglob("*") if p.is_file()}
    assert kinds <= {".json", ".yaml", ".md"}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_schema_and_codec_agree_with_the_name_of_every_example(path: Path) -> None:
    raw = path.read_bytes()
    wanted = path.name.startswith("valid-")
    assert schema_accepts(path.parent.name, json.loads(raw)) is wanted
    assert codec_accepts(path.parent.name, raw) is wanted


# --- the types and the schemas have the same fields

_ANNOTATIONS = {"title", "description", "$schema", "$id", "$defs", "examples"}


def canonical(node: Any) -> Any:
    """A schema without prose and with one spelling for each meaning, so that two can be compared."""
    if isinstance(node, list):
        return [canonical(part) for part in node]
    if not isinstance(node, dict):
        return node
    if "properties" in node:
        rest = {k: canonical(v) for k, v in node.items() if k not in {"properties", "required", *_ANNOTATIONS}}
        properties = {k: canonical(v) for k, v in node["properties"].items()}
        return {**rest, "properties": properties, "required": sorted(node.get("required", []))}
    found = {k: canonical(v) for k, v in node.items() if k not in _ANNOTATIONS}
    if found.get("default", 0) is None:
        del found["default"]
    options = found.pop("anyOf", None) or [
        {**{k: v for k, v in found.items() if k not in {"type", "default"}}, "type": t}
        for t in (found["type"] if isinstance(found.get("type"), list) else [])
    ]
    if options:
        default = {"default": found["default"]} if "default" in found else {}
        found = {"anyOf": _options(options), **default}
    if "const" in found:
        found["enum"] = [found.pop("const")]
    if None in found.get("enum", []):
        kept = {**found, "enum": sorted(v for v in found["enum"] if v is not None)}
        return {"anyOf": _options([kept, {"type": "null"}])}
    if "enum" in found:
        found["enum"] = sorted(found["enum"])
    if "pattern" in found:
        found["pattern"] = found["pattern"].replace(r"\Z", "$")
    return found


def _options(options: list[dict[str, Any]]) -> list[dict[str, Any]]:
    # Every integer is a number, so beside "number" it says nothing.
    if {"type": "number"} in options:
        options = [o for o in options if o != {"type": "integer"}]
    nulls = [{"type": "null"}] if any(o.get("type") == "null" for o in options) else []
    others = [o for o in options if o.get("type") != "null"]
    return sorted(others, key=lambda option: json.dumps(option, sort_keys=True)) + nulls


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_schema_has_exactly_the_fields_types_and_defaults_of_the_structs(suffix: str) -> None:
    written = schema(suffix)
    ours = {name: canonical(part) for name, part in written.get("$defs", {}).items()}
    if "oneOf" in written:
        assert written["oneOf"] == [{"$ref": f"#/$defs/{t.__name__}"} for t in BY_SUFFIX[suffix].types]
    else:
        ours[written["title"]] = canonical(written)
    _, components = msgspec.json.schema_components(BY_SUFFIX[suffix].types, ref_template="#/$defs/{name}")
    assert ours == {name: canonical(part) for name, part in components.items()}


def test_the_comparison_sees_a_difference() -> None:
    changed = schema("clicks")
    changed["properties"]["position"]["maximum"] = 99
    assert canonical(changed) != canonical(schema("clicks"))
    del changed["properties"]["position"]
    changed["required"].append("dwell_seconds")
    assert canonical(changed) != canonical(schema("clicks"))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_field_is_described(suffix: str) -> None:
    written = schema(suffix)
    for part in [written, *written.get("$defs", {}).values()]:
        assert part["title"]
        assert part["description"]
        for name, declared in part.get("properties", {}).items():
            assert declared.get("description"), name
            if declared.get("format") == "date-time":
                assert name.endswith(("_at", "_start", "_end")) or name == "at"


# --- AsyncAPI


@cache
def asyncapi() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((SCHEMAS / "asyncapi.yaml").read_text(encoding="utf-8"))
    return loaded


def resolve(reference: str) -> Any:
    file, _, pointer = reference.partition("#")
    node: Any = asyncapi()
    if file:
        node = json.loads((SCHEMAS / file).read_text(encoding="utf-8"))
    for part in pointer.strip("/").split("/") if pointer else []:
        node = node[part.replace("~1", "/").replace("~0", "~")]
    return node


def references(node: Any) -> list[str]:
    if isinstance(node, dict):
        inner = [r for v in node.values() for r in references(v)]
        return [node["$ref"], *inner] if isinstance(node.get("$ref"), str) else inner
    return [r for v in node for r in references(v)] if isinstance(node, list) else []


def test_asyncapi_references_resolve() -> None:
    found = references(asyncapi())
    assert len(found) > 50
    for reference in found:
        assert isinstance(resolve(reference), dict), reference


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_asyncapi_channel_says_what_the_topic_is(suffix: str) -> None:
    topic = BY_SUFFIX[suffix]
    [channel] = [c for c in asyncapi()["channels"].values() if c["address"] == topic.name()]
    kafka = channel["bindings"]["kafka"]
    assert kafka["topic"] == topic.name()
    assert (kafka["partitions"] > 1) == topic.partitioned
    assert ",".join(kafka["topicConfiguration"]["cleanup.policy"]) == topic.cleanup
    assert kafka["topicConfiguration"]["retention.ms"] == topic.retention_ms
    assert list(channel["messages"]) == [t.__name__ for t in topic.types]
    for name, reference in channel["messages"].items():
        message = resolve(reference["$ref"])
        payload = message["payload"]["schema"]["$ref"]
        assert payload.startswith(f"./{suffix}.v1.schema.json")
        assert resolve(payload)["title"] == name == message["name"]
        assert message["bindings"]["kafka"]["key"]["description"] == topic.key_name


def test_every_channel_is_used_and_every_operation_has_a_channel() -> None:
    used = {operation["channel"]["$ref"] for operation in asyncapi()["operations"].values()}
    readable = {"deadLetters"}  # written for people; no service reads them
    received = {
        operation["channel"]["$ref"].rsplit("/", 1)[1]
        for operation in asyncapi()["operations"].values()
        if operation["action"] == "receive"
    }
    assert used == {f"#/channels/{name}" for name in asyncapi()["channels"]}
    assert received == set(asyncapi()["channels"]) - readable


def test_the_table_of_topics_and_asyncapi_name_the_same_services() -> None:
    services = ("search", "streams", "trainer")
    table, told = dict[str, tuple[set[str], set[str]]](), dict[str, tuple[set[str], set[str]]]()
    for line in (SCHEMAS / "README.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if len(cells) == 7 and cells[0].startswith("["):
            sent, read = (
                set(services) if cell == "every consumer" else set(re.findall("|".join(services), cell))
                for cell in cells[5:]
            )
            table[cells[0][1:].split("]")[0]] = (sent, read)
    for name, channel in asyncapi()["channels"].items():
        sides = {"send": set[str](), "receive": set[str]()}
        for operation in asyncapi()["operations"].values():
            if operation["channel"]["$ref"] == f"#/channels/{name}":
                sides[operation["action"]].add(operation["tags"][0]["name"])
        told[channel["address"].split(".")[1]] = (sides["send"], sides["receive"])
    assert table == told


def test_headers_that_are_sent_are_the_documented_ones() -> None:
    documented = asyncapi()["components"]["schemas"]["CloudEventHeaders"]
    message = GOLDEN["ResultClicked.v1"]
    sent = {k: v.decode() for k, v in codec.headers(message, source="app", traceparent="00-ab-cd-01")}
    assert set(sent) == set(documented["properties"])
    assert not list(Draft202012Validator(documented).iter_errors(sent))


# --- golden bytes


def test_every_released_message_has_its_golden_bytes() -> None:
    assert {p.stem for p in (SCHEMAS / "golden").iterdir()} == set(GOLDEN)
    assert {name.split(".")[0] for name in GOLDEN} == {t.__name__ for t in TYPES}


@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_todays_reader_reads_the_golden_bytes(name: str) -> None:
    raw = (SCHEMAS / "golden" / f"{name}.json").read_bytes()
    assert codec.decode(raw, *TOPIC_OF[name.split(".")[0]].types) == GOLDEN[name]
    assert schema_accepts(TOPIC_OF[name.split(".")[0]].suffix, json.loads(raw))


NEWEST = {name.split(".")[0]: name for name in sorted(GOLDEN, key=lambda n: (len(n), n))}


@pytest.mark.parametrize("name", sorted(NEWEST.values()))
def test_todays_writer_writes_the_golden_bytes(name: str) -> None:
    assert codec.encode(GOLDEN[name]) == (SCHEMAS / "golden" / f"{name}.json").read_bytes()


@pytest.mark.parametrize("name", sorted(NEWEST.values()))
def test_newest_golden_message_sets_every_field(name: str) -> None:
    # What equals its default isn't written, and so would not be held.
    written = set(json.loads(codec.encode(GOLDEN[name])))
    assert written - {"type"} == set(GOLDEN[name].__struct_fields__)


# --- any message

_times = st.datetimes(
    min_value=datetime(1971, 1, 1),
    max_value=datetime(8999, 12, 30),
    timezones=st.just(UTC) | st.integers(-14 * 60, 14 * 60).map(lambda m: timezone(timedelta(minutes=m))),
)


def strategy(info: msgspec.inspect.Type) -> st.SearchStrategy[Any]:
    """Values that a field of this type may have."""
    match info:
        case msgspec.inspect.Metadata(type=inner):
            return strategy(inner)
        case msgspec.inspect.StrType(pattern=str(pattern)):
            return st.from_regex(re.compile(pattern, re.ASCII), fullmatch=True)
        case msgspec.inspect.StrType(min_length=low, max_length=high):
            return st.text(min_size=low or 0, max_size=min(high or 20, 20))
        case msgspec.inspect.IntType(ge=low, le=high):
            return st.integers(min_value=low if low is not None else -(2**63), max_value=high or 2**63 - 1)
        case msgspec.inspect.FloatType(ge=low, le=high, gt=above):
            return st.floats(
                min_value=low if above is None else above,
                max_value=high,
                exclude_min=above is not None,
                allow_nan=False,
                allow_infinity=False,
            )
        case msgspec.inspect.BoolType():
            return st.booleans()
        case msgspec.inspect.NoneType():
            return st.none()
        case msgspec.inspect.BytesType():
            return st.binary(max_size=20)
        case msgspec.inspect.DateTimeType():
            return _times
        case msgspec.inspect.LiteralType(values=values):
            return st.sampled_from(values)
        case msgspec.inspect.UnionType(types=types):
            return st.one_of([strategy(t) for t in types])
        case msgspec.inspect.ListType(item_type=item, min_length=low):
            return st.lists(strategy(item), min_size=low or 0, max_size=3)
        case msgspec.inspect.DictType(key_type=key, value_type=value):
            return st.dictionaries(strategy(key), strategy(value), max_size=3)
        case msgspec.inspect.StructType(cls=cls, fields=fields):
            return st.builds(cls, **{f.name: strategy(f.type) for f in fields})
        case _:
            raise AssertionError(f"no strategy for {info}")


@pytest.mark.parametrize("kind", TYPES, ids=lambda t: t.__name__)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_any_message_fits_its_schema_and_survives_the_wire(kind: type[Message], data: st.DataObject) -> None:
    message = data.draw(strategy(msgspec.inspect.type_info(kind)))
    raw = codec.encode(message)
    topic = TOPIC_OF[kind.__name__]
    assert schema_accepts(topic.suffix, json.loads(raw)), raw
    assert codec.decode(raw, *topic.types) == message


_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False).filter(lambda x: not x.is_integer())
    | st.text(max_size=6)
    | st.sampled_from(
        ["2026-03-02T09:15:04Z", "2026-03-02T09:15:04", "2026-02-30T00:00:00Z", "AQID", "AQI", "adapter"]
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)


def _places(node: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    keys = list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else []
    return [place for key in keys for place in ((*at, key), *_places(node[key], (*at, key)))]


@pytest.mark.parametrize("name", sorted(GOLDEN))
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_schema_and_codec_agree_on_a_message_with_any_value_in_any_place(name: str, data: st.DataObject) -> None:
    suffix = TOPIC_OF[name.split(".")[0]].suffix
    value = json.loads((SCHEMAS / "golden" / f"{name}.json").read_bytes())
    *parents, last = data.draw(st.sampled_from([p for p in _places(value) if p != ("type",)]))
    node = value
    for step in parents:
        node = node[step]
    if data.draw(st.booleans()):
        node[last] = data.draw(_json)
    else:
        del node[last]
    raw = msgspec.json.encode(value)
    assert schema_accepts(suffix, value) == codec_accepts(suffix, raw), raw


@pytest.mark.parametrize("name", sorted(GOLDEN))
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_damaged_bytes_raise_nothing_but_a_message_error(name: str, data: st.DataObject) -> None:
    raw = (SCHEMAS / "golden" / f"{name}.json").read_bytes()
    start = data.draw(st.integers(0, len(raw)))
    end = data.draw(st.integers(start, min(len(raw), start + 40)))
    torn = raw[:start] + data.draw(st.binary(max_size=8)) + raw[end:]
    try:
        codec.decode(torn, *TOPIC_OF[name.split(".")[0]].types)
    except MessageError:
        return
