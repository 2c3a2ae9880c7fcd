"""``clickloop streams``: the worker process."""

from __future__ import annotations

import asyncio
import gc
import sys
from typing import Annotated

import typer

from clickloop.cli import BootstrapServers, Index, TopicPrefix
from clickloop.errors import SettingsError
from clickloop.processes import stop_at_end_of, together
from clickloop.service import USAGE, run_service


def command(
    bootstrap_servers: BootstrapServers = None,
    topic_prefix: TopicPrefix = None,
    index: Index = None,
    threshold: Annotated[
        int | None, typer.Option(help="New examples that are enough for a retrain.", show_default="100")
    ] = None,
    kinds: Annotated[
        str | None,
        typer.Option(help="Rungs to train, in order, comma-separated.", show_default="adapter,query_encoder"),
    ] = None,
    metrics_port: Annotated[
        int | None, typer.Option(help="Port of /metrics for Prometheus.", show_default="none")
    ] = None,
    processes: Annotated[
        int | None, typer.Option(help="Processes of this worker; one uses one core.", show_default="1")
    ] = None,
) -> None:
    """Join queries with clicks and ratings, measure drift, trigger retraining, roll versions out."""
    from streams.settings import StreamsSettings

    try:
        settings = StreamsSettings.load(
            bootstrap_servers=bootstrap_servers,
            topic_prefix=topic_prefix,
            index=index,
            threshold=threshold,
            kinds=kinds,
            metrics_port=metrics_port,
            processes=processes,
        )
    except SettingsError as error:
        typer.echo(f"clickloop streams: {error}", err=True)
        raise typer.Exit(USAGE) from None

    from streams import detectors
    from streams.app import build_app

    detectors.load()
    # What was imported stays. And of what comes and goes by the ten thousand a second, little is ever in a cycle.
    gc.freeze()
    gc.set_threshold(200_000, 20, 20)

    def work(number: int = 0, lifeline: int | None = None) -> int:
        part = settings.part(number)

        async def main(stop: asyncio.Event) -> None:
            if lifeline is not None:
                stop_at_end_of(lifeline, stop)
            if part.metrics_port:
                _serve_metrics(part.metrics_port)
            await build_app(part).run(stop)

        return run_service("streams", part, main)

    sys.exit(together("streams", settings.processes, work) if settings.processes > 1 else work())


def _serve_metrics(port: int) -> None:
    from prometheus_client import start_http_server

    try:
        start_http_server(port)
    except OSError as error:
        raise SettingsError(f"metrics_port {port}: {error.strerror}") from None


if __name__ == "__main__":
    typer.run(command)
