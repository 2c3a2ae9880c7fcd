"""The HTTP face of a node. Hot path without response models: what was checked once is encoded once."""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import FastAPI, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

import clickloop
from clickloop.logs import logger
from search.answer import Searcher
from search.batcher import OverloadedError
from search.index import IndexUnavailableError
from search.indexing import Indexer
from search.metrics import Metrics
from search.requests import Problem, read_search, search_schema

JSON = "application/json"


def build_app(searcher: Searcher, indexer: Indexer, metrics: Metrics, *, node_id: str, index_name: str) -> FastAPI:
    app = FastAPI(title="Clickloop search node", version=clickloop.__version__)

    @app.post(
        "/search",
        response_class=Response,
        openapi_extra={"requestBody": {"required": True, "content": {JSON: {"schema": search_schema()}}}},
        responses={
            200: {"description": "Results, and which version, space, split and arm they are from"},
            400: {"description": "Problem details: what is wrong with the request"},
            404: {"description": "Problem details: no such version"},
            409: {"description": "Problem details: the version is not loaded"},
            503: {"description": "Problem details: not ready, or overloaded; try again"},
        },
    )
    async def search(request: Request) -> Response:
        answer = await searcher.answer(await read_search(request))
        return Response(msgspec.json.encode(answer), media_type=JSON)

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz")
    async def readyz() -> Response:
        ready = searcher.ready and not searcher.stopping
        body = {
            "ready": ready,
            "documents": indexer.documents,
            "model": searcher.swap is not None,
            "indexing": indexer.busy,
        }
        return Response(msgspec.json.encode(body), 200 if ready else 503, media_type=JSON)

    @app.get("/version")
    async def version() -> Response:
        return Response(msgspec.json.encode(_state(searcher, indexer, node_id, index_name)), media_type=JSON)

    @app.get("/metrics")
    async def prometheus() -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    _add_problems(app, searcher, metrics)
    return app


def _state(searcher: Searcher, indexer: Indexer, node_id: str, index_name: str) -> dict[str, Any]:
    state: dict[str, Any] = {
        "clickloop": clickloop.__version__,
        "node_id": node_id,
        "index": index_name,
        "documents": indexer.documents,
        "spaces": indexer.spaces,
    }
    if searcher.swap is not None:
        serving = searcher.swap.serving
        state["base"] = searcher.swap.base.version
        state["versions"] = {v.version: {"kind": v.kind, "space": v.space} for v in serving.versions.values()}
        state["split"] = {"split_id": serving.split_id, "salt": serving.salt, "arms": serving.arms}
    return state


def _add_problems(app: FastAPI, searcher: Searcher, metrics: Metrics) -> None:
    @app.exception_handler(Problem)
    async def on_problem(_: Request, problem: Problem) -> Response:
        if problem.status < 500:
            metrics.refused.inc()
        return problem.response()

    @app.exception_handler(ClientDisconnect)
    async def on_disconnect(_: Request, __: ClientDisconnect) -> Response:
        """No one is there to read the answer, and no query was there to fail."""
        return Response(status_code=400)

    @app.exception_handler(OverloadedError)
    @app.exception_handler(IndexUnavailableError)
    async def on_unavailable(_: Request, error: Exception) -> Response:
        searcher.failed += 1
        metrics.failed.inc()
        logger().warning("query not answered", reason=str(error))
        return Problem(503, "Not available", str(error), retry_after=1).response()

    @app.exception_handler(HTTPException)
    async def on_http(_: Request, error: HTTPException) -> Response:
        metrics.refused.inc()
        return Problem(error.status_code, str(error.detail)).response()

    @app.exception_handler(Exception)
    async def on_error(_: Request, error: Exception) -> Response:
        searcher.failed += 1
        metrics.failed.inc()
        logger().error("query failed", exc_info=error)
        return Problem(500, "Internal error", "see the node's log").response()
