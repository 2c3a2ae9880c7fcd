"""``clickloop trainer``."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from clickloop.cli import BootstrapServers, Index, TopicPrefix
from clickloop.errors import SettingsError


def command(
    bootstrap_servers: BootstrapServers = None,
    topic_prefix: TopicPrefix = None,
    index: Index = None,
    store_url: Annotated[
        str | None,
        typer.Option(help="fsspec URL of the model store.", show_default="file://.clickloop/store"),
    ] = None,
    base_model: Annotated[
        str | None,
        typer.Option(
            help="Where there is no version yet, start from this model.", show_default="all-MiniLM-L6-v2"
        ),
    ] = None,
    work_dir: Annotated[
        str | None, typer.Option(help="Folder for work in progress.", show_default=".clickloop/trainer")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="auto, cpu, mps, cuda or cuda:N.", show_default="auto")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads; 0 takes every core.", show_default="0")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of all random choices.", show_default="0")] = None,
    log_format: Annotated[str | None, typer.Option(help="console or json.", show_default="console")] = None,
    log_level: Annotated[
        str | None, typer.Option(help="DEBUG, INFO, WARNING or ERROR.", show_default="INFO")
    ] = None,
) -> None:
    """Train, gate and publish model versions as retrain commands ask."""
    from trainer.settings import TrainerSettings

    try:
        settings = TrainerSettings.load(
            bootstrap_servers=bootstrap_servers,
            topic_prefix=topic_prefix,
            index=index,
            store_url=store_url,
            base_model=base_model,
            work_dir=work_dir,
            device=device,
            threads=threads,
            seed=seed,
            log_format=log_format,
            log_level=log_level,
        )
    except SettingsError as error:
        typer.echo(f"clickloop trainer: {error}", err=True)
        raise typer.Exit(2) from None

    from clickloop.service import run_service
    from trainer.ranks import place
    from trainer.service import build_trainer, serve_rank

    where = place()
    if where is not None:
        sys.exit(run_service("trainer", settings, lambda stop: serve_rank(settings, where, stop)))
    sys.exit(run_service("trainer", settings, lambda stop: build_trainer(settings).serve(stop)))


if __name__ == "__main__":
    typer.run(command)
