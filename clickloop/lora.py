"""A query encoder as low-rank changes of another one's (LoRA, Hu et al. 2021), in the files that peft writes.

A version that was trained so has the unchanged encoder in ``encoder/`` and the changes in ``lora/``: peft can load
them, too. Only what Clickloop writes is read: a configuration that asks for anything else is refused, for it would
be another model.

What needs peft and torch imports them when it is called: the services that load encoders have both.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from clickloop.errors import ArtifactError

FOLDER = "lora"
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
SCALE = 2.0
"""Factor of a change, whatever its rank: ``alpha`` is so many times the rank."""


class LoraConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``adapter_config.json``, with peft's names."""

    r: Annotated[int, Meta(ge=1, le=4096)]
    """The rank."""
    lora_alpha: Annotated[float, Meta(gt=0.0)]
    target_modules: list[str]
    """Full names of the linear layers that are changed."""
    peft_type: Literal["LORA"] = "LORA"
    task_type: None = None
    base_model_name_or_path: str = ""
    """For a reader; what is changed is the encoder beside it."""
    bias: Literal["none"] = "none"
    lora_dropout: Literal[0] = 0
    inference_mode: bool = True


def config_of(rank: int, modules: list[str]) -> LoraConfig:
    return LoraConfig(r=rank, lora_alpha=SCALE * rank, target_modules=modules)


def read(version: Path) -> LoraConfig | None:
    """The configuration in a version's folder; None where its encoder stands alone. Raises ArtifactError."""
    path = version / FOLDER / CONFIG
    if not path.is_file():
        return None
    try:
        return msgspec.json.decode(path.read_bytes(), type=LoraConfig)
    except (OSError, msgspec.DecodeError, RecursionError) as error:
        raise ArtifactError(f"{path} can't be read: {error}") from None


def write(version: Path, config: LoraConfig, weights: dict[str, Any]) -> None:
    """``weights``: peft's name of a factor → its tensor."""
    from safetensors.torch import save_file

    folder = version / FOLDER
    folder.mkdir()
    (folder / CONFIG).write_bytes(msgspec.json.format(msgspec.json.encode(config), indent=2))
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


def weights(version: Path) -> dict[str, Any]:
    """peft's name of a factor → its tensor. Raises ArtifactError."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = version / FOLDER / WEIGHTS
    try:
        found: dict[str, Any] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"{path} can't be read: {error}") from None
    return found


def inject(transformer: Any, config: LoraConfig, factors: dict[str, Any] | None = None) -> Any:
    """Put trainable changes into a transformer, in place: peft's model around it. All else is frozen.

    Without ``factors`` the changes are none at first. Raises ArtifactError where the two don't fit.
    """
    import peft

    try:
        changed = peft.get_peft_model(
            transformer,
            peft.LoraConfig(r=config.r, lora_alpha=config.lora_alpha, target_modules=config.target_modules),
        )
        if factors is not None:
            expected = set(peft.get_peft_model_state_dict(changed))
            if expected != set(factors):
                raise ValueError(f"{len(expected ^ set(factors))} of its factors are of another model")
            peft.set_peft_model_state_dict(changed, dict(factors))
    except (ValueError, RuntimeError, KeyError) as error:
        raise ArtifactError(f"the low-rank changes don't fit their encoder: {error}") from None
    return changed


def factors(changed: Any) -> dict[str, Any]:
    """A copy of what ``inject`` put in, by peft's names."""
    import peft

    return {name: tensor.detach().clone() for name, tensor in peft.get_peft_model_state_dict(changed).items()}


def merge(transformer: Any, version: Path) -> None:
    """Change a transformer for good, in place, as the version's folder says; nothing where it says nothing.

    Raises ArtifactError.
    """
    config = read(version)
    if config is not None:
        inject(transformer, config, weights(version)).merge_and_unload()
