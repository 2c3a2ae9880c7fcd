"""Experiment trackers as lookers-on: what each version was made of, its loss, its gate, and which one is live.

Training must not wait for a tracker, nor fail by one. So facts are put into a bounded queue, and a thread of its
own hands them on. A tracker that is away, slow or broken costs its own records, one warning, and nothing else.
"""

from __future__ import annotations

import json
import os
import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from clickloop.errors import SettingsError
from clickloop.logs import logger
from clickloop.model_store import Manifest, Published
from trainer.methods.base import Progress
from trainer.settings import TrainerSettings

CHALLENGER, CHAMPION = "challenger", "champion"
"""Aliases of the newest version that passed its gate, and of the one that is live."""
MOST_WAITING = 1000
"""Facts that wait for the tracker; beyond it they are dropped, losses first."""
EVERY_SECONDS = 0.2
"""Between two losses of a version that are told."""
CLOSING_SECONDS = 5.0
"""That the end of the process waits for what is not told yet."""


class Tracker(Protocol):
    """Told one fact after the other, from one thread. It may take long, and raise anything."""

    def loss(self, version: str, step: int, loss: float) -> None:
        """Of a version in the making; steps are counted through all its trainings."""
        ...

    def published(self, published: Published) -> None:
        """A version lies in the store, with its verdict. Told again where a command is done again."""
        ...

    def failed(self, version: str) -> None:
        """A version will not be made."""
        ...

    def live(self, version: str) -> None:
        """What the traffic's newest split names as live, which may be a version that no one has told of."""
        ...


Fact = Callable[[Tracker], None]


class Tracking:
    """Takes facts from the trainer and hands them to a tracker, if there is one, in a thread of its own.

    Nothing here waits or raises but ``close``, which waits for CLOSING_SECONDS at most.
    """

    def __init__(self, make: Callable[[], Tracker] | None = None) -> None:
        self._make = make
        self._facts: queue.Queue[Fact | None] = queue.Queue(MOST_WAITING)
        self._thread: threading.Thread | None = None
        self._failing = self._behind = False
        self._version = self._live = ""
        self._before = self._step = 0
        self._next = 0.0

    @property
    def wanted(self) -> bool:
        return self._make is not None

    def progress(self, version: str, progress: Progress) -> None:
        """From the training thread, at every step."""
        if self._make is None or not version or progress.loss is None:
            return
        if version != self._version:
            self._version, self._before, self._step = version, 0, 0
        if progress.step < self._step:  # another training of the same version begins
            self._before += self._step
        self._step = progress.step
        if time.monotonic() < self._next or self._facts.qsize() > MOST_WAITING // 2:
            return
        self._next = time.monotonic() + EVERY_SECONDS
        step, loss = self._before + progress.step, progress.loss
        self._tell(lambda tracker: tracker.loss(version, step, loss))

    def published(self, published: Published) -> None:
        self._tell(lambda tracker: tracker.published(published))

    def failed(self, version: str) -> None:
        if version:
            self._tell(lambda tracker: tracker.failed(version))

    def live(self, version: str) -> None:
        if version and version != self._live:
            self._live = version
            self._tell(lambda tracker: tracker.live(version))

    def close(self) -> None:
        """Let what is waiting be told, for a while."""
        if self._thread is None:
            return
        with suppress(queue.Full):
            self._facts.put_nowait(None)
        self._thread.join(CLOSING_SECONDS)
        if self._thread.is_alive():
            logger().warning("tracker left behind", waiting=self._facts.qsize())

    def _tell(self, fact: Fact) -> None:
        if self._make is None:
            return
        if self._thread is None:
            # A daemon, so that a tracker which hangs can't keep the process.
            self._thread = threading.Thread(target=self._work, args=(self._make,), name="tracker", daemon=True)
            self._thread.start()
        try:
            self._facts.put_nowait(fact)
            self._behind = False
        except queue.Full:
            if not self._behind:
                logger().warning("tracker is behind, facts are dropped", waiting=MOST_WAITING)
            self._behind = True

    def _work(self, make: Callable[[], Tracker]) -> None:
        tracker: Tracker | None = None
        while (fact := self._facts.get()) is not None:
            try:
                if tracker is None:
                    tracker = make()
                fact(tracker)
                self._failing = False
            except Exception as error:  # noqa: BLE001 - whatever a tracker's library raises, training goes on
                if not self._failing:
                    logger().warning("tracker failed, training goes on without it", reason=repr(error)[:500])
                self._failing = True


def build_tracking(settings: TrainerSettings) -> Tracking:
    """By the setting ``tracker``. Raises SettingsError where its library is not installed."""
    if settings.tracker == "none":
        return Tracking()
    if not find_spec(settings.tracker):
        raise SettingsError(
            f"tracker {settings.tracker}: the module is not installed; pip install 'clickloop[{settings.tracker}]'"
        )
    if settings.tracker == "mlflow":
        return Tracking(lambda: MlflowTracker(settings.tracker_uri, settings.index))
    return Tracking(lambda: WandbTracker(settings.index, settings.work_dir))


def project_of(index: str) -> str:
    """Name of the experiment, and of the model in a registry."""
    return f"clickloop-{index}"


def parameters_of(manifest: Manifest) -> dict[str, Any]:
    """What the version was trained by and on."""
    lineage = manifest.lineage
    return dict(lineage.settings) | {
        "strategy": lineage.strategy,
        "base_model": lineage.base_model,
        "seed": lineage.seed,
        "code_version": lineage.code_version,
        "kind": manifest.kind,
        "parent": manifest.parent or "",
    }


def figures_of(manifest: Manifest) -> dict[str, float]:
    """What was measured: the gate's table, and the costs."""
    lineage, gate = manifest.lineage, manifest.gate
    found = {
        "train_seconds": lineage.train_seconds,
        "examples": float(lineage.examples),
        "documents": float(lineage.documents),
        "stored_bytes": float(manifest.stored_bytes),
    }
    if gate is not None:
        found["gate_queries"] = float(gate.queries)
        for metric, estimate in gate.metrics.items():
            for name in ("before", "after", "change", "low", "high"):
                found[f"{metric}/{name}"] = getattr(estimate, name)
    return found


def labels_of(published: Published) -> dict[str, str]:
    """Where the version comes from and lies."""
    manifest = published.manifest
    return {
        "clickloop.version": manifest.version,
        "clickloop.kind": manifest.kind,
        "clickloop.parent": manifest.parent or "",
        "clickloop.command": manifest.lineage.command_id,
        "clickloop.verdict": manifest.gate.verdict if manifest.gate else "",
        "clickloop.artifact_uri": published.uri,
        "clickloop.digest": published.digest,
    }


def passed(published: Published) -> bool:
    gate = published.manifest.gate
    return gate is not None and gate.verdict == "pass"


class MlflowTracker:
    """A run for each version, and a registered model with a model version for each, which points to the store."""

    def __init__(self, uri: str, index: str) -> None:
        # Facts about a user's trainings are told to the user's server alone, and one that is away not seven times.
        for name, value in (
            ("MLFLOW_DISABLE_TELEMETRY", "true"),
            ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1"),
            ("MLFLOW_HTTP_REQUEST_TIMEOUT", "20"),
            ("GIT_PYTHON_REFRESH", "quiet"),
        ):
            os.environ.setdefault(name, value)
        import mlflow

        if uri:
            # Some of its calls look here, whatever a client was made with, and else make a mlflow.db.
            mlflow.set_tracking_uri(uri)
        self._client = mlflow.MlflowClient(tracking_uri=uri or None, registry_uri=uri or None)
        self._name = project_of(index)
        experiment = self._client.get_experiment_by_name(self._name)
        self._experiment = experiment.experiment_id if experiment else self._client.create_experiment(self._name)
        if not self._client.search_registered_models(f"name = '{self._name}'"):
            self._client.create_registered_model(self._name)
        self._runs: dict[str, str] = {}

    def loss(self, version: str, step: int, loss: float) -> None:
        self._client.log_metric(self._run(version), "loss", loss, step=step)

    def published(self, published: Published) -> None:
        from mlflow.entities import Metric, Param, RunTag

        version, run = published.manifest.version, self._run(published.manifest.version)
        now = int(time.time() * 1000)
        self._client.log_batch(
            run,
            metrics=[Metric(name, value, now, 0) for name, value in figures_of(published.manifest).items()],
            params=[Param(name, str(value)) for name, value in parameters_of(published.manifest).items()],
            tags=[RunTag(name, value) for name, value in labels_of(published).items()],
        )
        self._client.set_terminated(run)
        number = self._registered(version)
        if number is None:
            number = self._client.create_model_version(
                self._name, source=published.uri, run_id=run, tags=labels_of(published)
            ).version
        if passed(published):
            self._client.set_registered_model_alias(self._name, CHALLENGER, number)

    def failed(self, version: str) -> None:
        run = self._find(version)
        if run and self._client.get_run(run).info.status == "RUNNING":
            self._client.set_terminated(run, status="FAILED")

    def live(self, version: str) -> None:
        aliases = self._client.get_registered_model(self._name).aliases
        number = self._registered(version)
        if number is not None:
            self._client.set_registered_model_alias(self._name, CHAMPION, number)
            if str(aliases.get(CHALLENGER, "")) == str(number):
                self._client.delete_registered_model_alias(self._name, CHALLENGER)
        elif CHAMPION in aliases:
            # The base model, or one from before the tracker: then no registered version is the champion.
            self._client.delete_registered_model_alias(self._name, CHAMPION)

    def _run(self, version: str) -> str:
        """The version's run, begun anew where there is none."""
        if version not in self._runs:
            found = self._find(version)
            if not found:
                tags = {"clickloop.version": version}
                found = self._client.create_run(self._experiment, run_name=version, tags=tags).info.run_id
            self._runs[version] = found
        return self._runs[version]

    def _find(self, version: str) -> str:
        found = self._client.search_runs([self._experiment], f"tags.`clickloop.version` = '{version}'")
        return str(found[0].info.run_id) if found else ""

    def _registered(self, version: str) -> str | None:
        wanted = f"name = '{self._name}' and tags.`clickloop.version` = '{version}'"
        found = self._client.search_model_versions(wanted)
        return str(found[0].version) if found else None


class WandbTracker:
    """A run for each version, and an artifact that names it, in files that ``wandb sync`` sends.

    Never over the network: W&B's library waits for its server without end when the process is to stop.
    """

    def __init__(self, index: str, folder: Path) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        self._wandb = wandb
        self._project = project_of(index)
        self._folder = folder
        self._runs: dict[str, Any] = {}

    def loss(self, version: str, step: int, loss: float) -> None:
        self._run(version).log({"loss": loss}, step=step)

    def published(self, published: Published) -> None:
        version = published.manifest.version
        run = self._run(version)
        run.config.update(parameters_of(published.manifest) | labels_of(published), allow_val_change=True)
        run.summary.update(figures_of(published.manifest))
        self._log_artifact(run, version, [CHALLENGER] if passed(published) else [], labels_of(published))
        self._runs.pop(version).finish()

    def failed(self, version: str) -> None:
        if version in self._runs:
            self._runs.pop(version).finish(exit_code=1)

    def live(self, version: str) -> None:
        # An artifact of the same content is the same one to W&B, so that this moves the alias and adds nothing.
        with self._begun(name=f"live {version}", job_type="rollout") as run:
            run.summary.update({"live": version})
            self._log_artifact(run, version, [CHAMPION], {})

    def _run(self, version: str) -> Any:
        if version not in self._runs:
            self._runs[version] = self._begun(id=version, name=version, job_type="training")
        return self._runs[version]

    def _begun(self, **named: Any) -> Any:
        self._folder.mkdir(parents=True, exist_ok=True)
        settings = self._wandb.Settings(
            console="off",
            silent=True,
            disable_code=True,
            disable_git=True,
            x_disable_meta=True,
            x_disable_stats=True,
        )
        return self._wandb.init(
            project=self._project,
            dir=self._folder,
            mode="offline",
            reinit="create_new",
            settings=settings,
            **named,
        )

    def _log_artifact(self, run: Any, version: str, aliases: list[str], labels: dict[str, str]) -> None:
        artifact = self._wandb.Artifact(self._project, "model", metadata=labels)
        with artifact.new_file("version.json") as file:
            json.dump({"version": version}, file)
        run.log_artifact(artifact, aliases=aliases)
