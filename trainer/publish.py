"""From a trained model to a version in the store and a message about it. Immutable, manifest last."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

import cramjam
import msgspec
import numpy as np
from tokenizers import Tokenizer

from clickloop import codec
from clickloop.accounts import gate_rows
from clickloop.errors import ArtifactError
from clickloop.events import ExampleFormed, GateResult, Lineage, ModelVersionPublished, VersionKind
from clickloop.model_store import ENCODER, Manifest, ModelStore, Published
from clickloop.propensity import Examination
from trainer.dataset import Clicks, Corpus
from trainer.methods.base import Notes, Parent, Trained
from trainer.methods.checkpoint import Checkpoints
from trainer.model import writing
from trainer.strategies import PRESETS

TOKENIZER = "tokenizer.json"
EXAMPLES = "examples.jsonl.zst"
MAKING = "making"
_DIGITS = 12
_VECTOR_DIGITS = 16
"""Of digests that tell vectors apart, and guard nothing."""


def version_name(kind: VersionKind, command_id: str) -> str:
    """One command makes one version of a kind, so that doing a command again makes no second one."""
    return f"{kind.replace('_', '-')}-{_digest(f'{command_id}/{kind}')}"


def run_name(command_id: str) -> str:
    return f"run-{_digest(command_id)}"


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=_DIGITS // 2).hexdigest()


@contextmanager
def scratch_folder(work_dir: Path, version: str) -> Iterator[Path]:
    """An empty folder for an artifact in the making; what an earlier run left there goes first."""
    folder = work_dir / MAKING / version
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def leave_nothing(work_dir: Path, index: str, version: str) -> None:
    """Remove what was only needed until the version was in the store. What others still need stays."""
    shutil.rmtree(work_dir / MAKING / version, ignore_errors=True)
    Checkpoints.remove_folder(Checkpoints.folder(work_dir, index, version))


def describe(
    *,
    version: str,
    kind: VersionKind,
    parent: Manifest,
    lineage: Lineage,
    gate: GateResult,
) -> Manifest:
    """How the version is put together: which encoders it names follows from the kind alone."""
    own = kind != "adapter"
    return Manifest(
        version=version,
        kind=kind,
        space=version if kind == "full" else parent.space,
        encoder=version if own else parent.encoder,
        parent=parent.version,
        lineage=lineage,
        gate=gate,
    )


def write_artifact(
    folder: Path, manifest: Manifest, parent: Parent, trained: Trained, examples: Sequence[ExampleFormed] = ()
) -> None:
    """Fill ``folder`` with everything but the manifest."""
    if trained.low_rank is not None:
        trained.low_rank.save(folder)
    elif trained.encoder is not None:
        trained.encoder.save_pretrained(str(folder / "encoder"), create_model_card=False)
    adapter = trained.adapter
    if adapter is None and manifest.kind == "query_encoder":
        adapter = parent.adapter
    if adapter is not None:
        adapter.save(folder)
    gate = msgspec.json.encode(manifest.gate)
    (folder / "gate.json").write_bytes(msgspec.json.format(gate, indent=2))
    if examples:
        raw = b"".join(codec.encode(example) + b"\n" for example in examples)
        (folder / EXAMPLES).write_bytes(bytes(cramjam.zstd.compress(raw)))
    card = model_card(manifest, low_rank=trained.low_rank is not None, enclosed=bool(examples))
    (folder / "README.md").write_text(card, encoding="utf-8")


def publish(
    store: ModelStore,
    work_dir: Path,
    manifest: Manifest,
    parent: Parent,
    trained: Trained,
    *,
    examples: Sequence[ExampleFormed] = (),
) -> Published:
    """Write the artifact and put it into the store. A version that is there already stays as it is.

    ``examples`` go with it: those that can't be read again from a log.
    """
    with scratch_folder(work_dir, manifest.version) as folder:
        with writing(folder):
            write_artifact(folder, manifest, parent, trained, examples)
        if (folder / ENCODER).is_dir() and manifest.space != manifest.version:
            # A space that is torn costs room alone: what is its own is stored anew then, and the store says so.
            with suppress(ArtifactError):
                take_tokenizer(folder / ENCODER, store.fetch(manifest.space)[0] / ENCODER)
        return store.publish(folder, manifest)


def take_tokenizer(encoder: Path, other: Path) -> None:
    """Give one encoder's folder the other's tokenizer file, where both read any text alike.

    No rung changes the tokenizer, but saving writes its file a little differently each time: with the length that
    it was last asked to cut at, and defaults that the file did not name. The store keeps what is the same to the
    byte only once. Who encodes says at each call where to cut, so that part is not looked at.
    """
    own, others = encoder / TOKENIZER, other / TOKENIZER
    if own.is_file() and others.is_file() and _reading(own) == _reading(others) != "":
        shutil.copyfile(others, own)


def _reading(file: Path) -> str:
    """How a tokenizer reads a text of any length; "" where the file holds none."""
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception:  # noqa: BLE001 - what tokenizers raises is Exception itself
        return ""
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return str(tokenizer.to_str())


def announcement(published: Published, *, index: str, at: datetime) -> ModelVersionPublished:
    """The message about a version. The same version always has the same event id."""
    manifest = published.manifest
    return ModelVersionPublished(
        event_id=f"{index}/{manifest.version}",
        index=index,
        version=manifest.version,
        kind=manifest.kind,
        space=manifest.space,
        artifact_uri=published.uri,
        digest=published.digest,
        signature=published.signature,
        published_at=at,
        parent=manifest.parent,
        lineage=manifest.lineage,
        gate=manifest.gate,
    )


def model_card(manifest: Manifest, *, low_rank: bool = False, enclosed: bool = False) -> str:
    """README.md of the artifact: what it is, how it was made, what the gate saw, how to use it.

    ``low_rank``: it holds low-rank changes to the encoder; ``enclosed``: its examples lie beside it.
    """
    lineage, gate = manifest.lineage, manifest.gate
    lines = [
        "---",
        "library_name: sentence-transformers",
        "pipeline_tag: sentence-similarity",
        f"base_model: {lineage.base_model}",
        "---",
        "",
        f"# {manifest.version}",
        "",
        f"A `{manifest.kind}` version made by Clickloop from `{manifest.parent}`.",
        "",
        f"- Documents are encoded by `{manifest.space}`, queries by `{manifest.encoder}`.",
        f"- Trained on {lineage.examples} examples, with {lineage.documents} documents in the index.",
        f"- {lineage.train_seconds:.1f} seconds of training, strategy `{lineage.strategy}`, seed {lineage.seed}.",
        f"- Newest example: {_time(lineage.newest_example_at)}.",
        f"- Command `{lineage.command_id}`, run `{lineage.run_id}`, Clickloop {lineage.code_version}.",
        "",
        "## Gate",
        "",
    ]
    if gate is not None:
        lines += [f"Verdict: **{gate.verdict}**, on {gate.queries} held-out queries."]
        lines += [f"- {reason}" for reason in gate.reasons]
        lines += ["", "| metric | before | after | change | 95 % interval |", "| --- | --- | --- | --- | --- |"]
        lines += [f"| {' | '.join(row)} |" for row in gate_rows(gate)]
    lines += ["", "## Examples", "", *_examples(lineage, enclosed)]
    lines += ["", "## Use", "", *_usage(manifest, low_rank), ""]
    return "\n".join(lines)


def _examples(lineage: Lineage, enclosed: bool) -> list[str]:
    """Where what it was trained and judged on is to be found."""
    known, lines, clicks = lineage.settings, list[str](), "judged on"
    match next((preset.taught_by for name, preset in PRESETS.items() if name == lineage.strategy), "clicks"):
        case "clicks":
            clicks = "trained and judged on"
        case "documents":
            lines += ["Trained on queries made from the documents, as far as its parent believed them.", ""]
        case "file":
            file = f"`{known.get('pairs_uri')}` (SHA-256 `{known.get('pairs_sha256')}`)"
            lines += [f"Trained on the pairs of {file} whose documents are in the index.", ""]
    if lineage.ranges:
        lines += [f"The exact offsets `[start, end)` of the clicks that it was {clicks}:", ""]
        lines += ["| topic | partition | start | end |", "| --- | --- | --- | --- |"]
        lines += [f"| {r.topic} | {r.partition} | {r.start} | {r.end} |" for r in lineage.ranges]
    elif enclosed:
        lines += [f"The examples that it was {clicks} are in `{EXAMPLES}` beside this file."]
        if "events_sha256" in known:
            file = f"`{known.get('events_file')}` (SHA-256 `{known['events_sha256']}`)"
            lines += [f"They were formed from the recorded events of {file}."]
    else:
        lines += ["No clicks were read."]
    if replayed := known.get("replayed_examples"):
        lines += ["", f"With them {replayed} older examples were learnt again, a sample of what lay before."]
    if dropped := known.get("dropped_examples"):
        lines += ["", f"The {dropped} oldest of them had no room (`max_examples`), and were left out."]
    return lines


def _usage(manifest: Manifest, low_rank: bool) -> list[str]:
    changes = ", merge `lora/` into its transformer with peft," if low_rank else ""
    steps = [
        f"Load `encoder/` of `{manifest.encoder}` with sentence-transformers{changes} and normalise its vectors."
    ]
    if manifest.kind == "adapter":
        steps.append("Query vector = normalise(weight @ e + bias), from `adapter.safetensors`.")
    elif manifest.kind == "query_encoder":
        steps.append("Where `adapter.safetensors` is there: query vector = normalise(weight @ e + bias).")
    steps.append(f"Compare with documents of space `{manifest.space}` only.")
    steps.append(f"Or `clickloop export {manifest.version} --as sentence-transformers`, which does 1 and 2.")
    return [f"{number}. {step}" for number, step in enumerate(steps, start=1)]


def _time(at: datetime | None) -> str:
    return at.isoformat().replace("+00:00", "Z") if at else "none"


def looked_at(examination: Examination | None) -> Notes:
    """For the lineage: on how many clicks it rests where people were taken to look, and how often at the fifth."""
    if examination is None:
        return {}
    return {"swapped_clicks": examination.swapped_clicks, "examined_at_5": round(examination.curve(5)[-1], 4)}


def seen_vectors(corpus: Corpus, *asked: Clicks) -> Notes:
    """For the lineage: digests that tell whether another run had the same vectors to train on, to the bit."""
    queries = hashlib.sha256()
    for part in asked:
        queries.update(np.ascontiguousarray(part.vectors).data)
    documents = hashlib.sha256(np.ascontiguousarray(corpus.vectors).data)
    return {
        "document_vectors_sha256": documents.hexdigest()[:_VECTOR_DIGITS],
        "query_vectors_sha256": queries.hexdigest()[:_VECTOR_DIGITS],
    }
