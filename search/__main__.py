"""``clickloop search`` and ``python -m search``: one search node."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Annotated

import typer


def command(
    host: Annotated[str | None, typer.Option(help="Address to listen on.", show_default="127.0.0.1")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on.", show_default="8080")] = None,
    address: Annotated[str | None, typer.Option(help="URL under which others reach this node.")] = None,
    node_id: Annotated[
        str | None, typer.Option(help="Unique name of the node.", show_default="<host name>-<port>")
    ] = None,
    data_dir: Annotated[
        str | None, typer.Option(help="The node's own folder.", show_default=".clickloop/search/<node id>")
    ] = None,
    store_url: Annotated[str | None, typer.Option(help="fsspec URL of models and vectors.")] = None,
    base_model: Annotated[
        str | None, typer.Option(help="sentence-transformers name or folder.", show_default="all-MiniLM-L6-v2")
    ] = None,
    public_key: Annotated[
        str | None, typer.Option(help="Ed25519 key (base64) by which versions must be signed.")
    ] = None,
    bootstrap_servers: Annotated[
        str | None, typer.Option(help="Kafka's host:port list.", show_default="localhost:9092")
    ] = None,
    redis_url: Annotated[str | None, typer.Option(help="Redis for caches and leases; none works too.")] = None,
    qdrant_url: Annotated[
        str | None, typer.Option(help="Qdrant server; without it the index is in process.")
    ] = None,
    topic_prefix: Annotated[
        str | None, typer.Option(help="First part of topic names.", show_default="clickloop")
    ] = None,
    partitions: Annotated[int | None, typer.Option(help="Partitions of topics that don't exist yet.")] = None,
    index: Annotated[str | None, typer.Option(help="Name of the index.", show_default="default")] = None,
    mode: Annotated[str | None, typer.Option(help="dense or hybrid.", show_default="hybrid")] = None,
    encode_threads: Annotated[
        int | None, typer.Option(help="CPU threads of one encode.", show_default="half of the CPUs")
    ] = None,
    heartbeat_seconds: Annotated[
        float | None, typer.Option(help="Time between reports on node-status.", show_default="5")
    ] = None,
    log_format: Annotated[str | None, typer.Option(help="console or json.", show_default="console")] = None,
    log_level: Annotated[str | None, typer.Option(help="Least level that is logged.", show_default="INFO")] = None,
) -> None:
    """Run a search node: HTTP in front, the index and the models behind it."""
    from clickloop.errors import SettingsError
    from clickloop.service import USAGE, run_service
    from search.settings import SearchSettings

    try:
        settings = SearchSettings.load(
            host=host,
            port=port,
            address=address,
            node_id=node_id,
            data_dir=data_dir,
            store_url=store_url,
            base_model=base_model,
            public_key=public_key,
            bootstrap_servers=bootstrap_servers,
            redis_url=redis_url,
            qdrant_url=qdrant_url,
            topic_prefix=topic_prefix,
            partitions=partitions,
            index=index,
            mode=mode,
            encode_threads=encode_threads,
            heartbeat_seconds=heartbeat_seconds,
            log_format=log_format,
            log_level=log_level,
        )
    except SettingsError as error:
        typer.echo(f"clickloop search: {error}", err=True)
        raise typer.Exit(USAGE) from None

    async def main(stop: asyncio.Event) -> None:
        from search.node import build_node

        await build_node(settings).run(stop)

    code = run_service("search", settings, main)
    sys.stdout.flush()
    sys.stderr.flush()
    # What is left are threads in the middle of an encode or an import; nothing is lost with them, and an
    # interpreter that waits for them would not be gone within seconds.
    os._exit(code)


if __name__ == "__main__":
    typer.run(command)
