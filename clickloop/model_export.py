"""A version in the formats of other programs; which conversions there are, an installed service knows."""

from __future__ import annotations

from importlib.metadata import entry_points
from pathlib import Path
from typing import Literal, get_args

from clickloop.errors import SettingsError
from clickloop.model_store import ModelStore
from clickloop.service import missing

ModelForm = Literal["sentence-transformers", "onnx", "openvino", "gguf"]
MODEL_FORMS: tuple[str, ...] = get_args(ModelForm)


def write_model(store: ModelStore, version: str, form: str, folder: Path, *, quantize: bool) -> str:
    """Write the version to ``folder`` and return a line about it. Raises SettingsError and ArtifactError."""
    for point in entry_points(group="clickloop.model_exporters"):
        try:
            return str(point.load()(store, version, form, folder, quantize=quantize))
        except ModuleNotFoundError as error:
            extra = "export" if (error.name or "").split(".")[0] in _OF_EXPORT else "trainer"
            raise SettingsError(f"--as {form}: {missing(error, extra=extra)}") from None
    raise SettingsError(f"--as {form}: nothing installed writes models; pip install 'clickloop[trainer,export]'")


_OF_EXPORT = {"onnx", "onnxscript", "onnxruntime", "openvino", "gguf"}
