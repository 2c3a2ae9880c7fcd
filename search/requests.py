"""What a client may ask, and how it hears that it may not (problem details, RFC 9457)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct, field
from starlette.requests import Request
from starlette.responses import Response

from search.index import FilterValue

MAX_BODY_BYTES = 64 * 1024
MAX_QUERY_CHARACTERS = 2000
MAX_K = 100

AttributeName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]


class SearchRequest(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Body of ``POST /search``."""

    query: Annotated[str, Meta(max_length=MAX_QUERY_CHARACTERS, description="What to search for")]
    k: Annotated[int, Meta(ge=1, le=MAX_K, description="How many results")] = 10
    split_key: Annotated[str, Meta(max_length=256, description="Hashed user or session")] = ""
    domain: Annotated[str, Meta(max_length=256, description="What this is for; examples are counted by it")] = ""
    filters: Annotated[dict[AttributeName, FilterValue], Meta(max_length=16)] = field(default_factory=dict)
    mode: Literal["dense", "hybrid"] | None = None
    version: Annotated[str | None, Meta(description="Answer with this version, whatever the split says")] = None
    record: Annotated[bool, Meta(description="Publish QueryServed for this query")] = True


class Problem(Exception):  # noqa: N818 - the standard's word
    """An answer that says what is wrong."""

    def __init__(self, status: int, title: str, detail: str = "", *, retry_after: int | None = None) -> None:
        super().__init__(title)
        self.status = status
        self.title = title
        self.detail = detail
        self.retry_after = retry_after

    def response(self) -> Response:
        body: dict[str, Any] = {"type": "about:blank", "title": self.title, "status": self.status}
        if self.detail:
            body["detail"] = self.detail
        headers = {} if self.retry_after is None else {"retry-after": str(self.retry_after)}
        return Response(msgspec.json.encode(body), self.status, headers, media_type="application/problem+json")


_decoder = msgspec.json.Decoder(SearchRequest)


async def read_search(request: Request) -> SearchRequest:
    """The request, checked. Raises Problem with a status of 4xx."""
    media_type = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if media_type != "application/json" and not media_type.endswith("+json"):
        raise Problem(415, "Unsupported media type", f"send application/json, not {media_type[:100]}")
    try:
        wanted = _decoder.decode(await _body(request))
    except msgspec.ValidationError as error:
        raise Problem(400, "Invalid request", str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Problem(400, "Not readable as JSON", str(error)) from None
    _check(wanted)
    return wanted


def _check(wanted: SearchRequest) -> None:
    if not wanted.query.strip():
        raise Problem(400, "Invalid request", "query is empty - at `$.query`")
    try:
        f"{wanted.query}{wanted.split_key}{wanted.domain}".encode()
    except UnicodeEncodeError:
        raise Problem(400, "Invalid request", "half a surrogate pair is no text") from None
    for name, value in wanted.filters.items():
        if isinstance(value, list):
            kinds = {type(item) for item in value}
            if len(kinds) != 1 or len(value) > 100:
                raise Problem(
                    400, "Invalid request", f"1 to 100 values of one type, please - at `$.filters.{name}`"
                )


async def _body(request: Request) -> bytes:
    parts = bytearray()
    async for part in request.stream():
        parts += part
        if len(parts) > MAX_BODY_BYTES:
            raise Problem(413, "Too large", f"a request has at most {MAX_BODY_BYTES} bytes")
    return bytes(parts)


def search_schema() -> dict[str, Any]:
    """JSON Schema of the body, with nothing to look up elsewhere, for the OpenAPI page."""
    (_,), components = msgspec.json.schema_components([SearchRequest])
    schema = dict(components["SearchRequest"])
    alternatives = schema["properties"]["filters"]["additionalProperties"]["anyOf"]
    alternatives[:] = [components["Range"] if "$ref" in kind else kind for kind in alternatives]
    return schema
