"""Model <-> one safetensors file, whose SHA-256 is the model's id.

A model file is of one codec. It holds its integer layers, of the lossy codec also float transforms and entropy tables,
and one metadata entry `zippy_batch` (JSON): format, name, codec, architecture, training summary, licence notice.
Loading proves the exactness of every integer layer again (`latent/context.py`, `exact/context.py`), so that a damaged
or hand-made file cannot decode to different symbols on different machines.
"""

from __future__ import annotations

import hashlib
import json
import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zippy_batch.errors import ModelError, UsageError

MODEL_FORMAT = 2
MAX_MODEL_BYTES = 64 << 20
_METADATA_KEY = "zippy_batch"


@dataclass(frozen=True)
class Model:
    """A model file in memory, parsed and identified, not yet proved (codecs do that when they build their layers)."""

    name: str
    id: str
    """SHA-256 of `data`, hex."""
    data: bytes
    builtin: bool
    card: Mapping[str, Any]
    """The file's metadata: format, name, architecture, training, licence."""

    @property
    def codec(self) -> str:
        """latent or exact."""
        return str(self.card.get("codec", "latent"))

    @cached_property
    def arrays(self) -> Mapping[str, NDArray[Any]]:
        return _parse(self.data)[1]


@dataclass(frozen=True)
class ModelSummary:
    name: str
    codec: str
    id: str
    size_bytes: int
    card: Mapping[str, Any]

    def lines(self) -> list[str]:
        """Text for a terminal: what the model is, how it was trained, what is proved of it, and its notice."""
        out = [f"{self.name}  {self.codec} codec  {self.size_bytes / 1e6:.1f} MB  {self.id}"]
        training = self.card.get("training")
        if isinstance(training, dict):
            counts = ("minutes", "steps", "images")
            facts = [f"{training[k]} {k}" for k in counts if isinstance(training.get(k), int | float)]
            facts += [f"from {training['from'][:12]}"] if training.get("from") else []
            facts += [f"sizes {training['sizes']}"] if training.get("sizes") else []
            out.append(f"  trained: {', '.join(facts)}")
        sources = self.card.get("sources")
        if sources:
            out.append(f"  on: {', '.join(map(str, sources))}")
        proof = self.card.get("exactness")
        if isinstance(proof, dict):
            out.append(
                f"  exact: no sum of its {proof.get('layers')} integer layers exceeds {proof.get('largest_sum')}, and "
                f"float32 is exact up to {proof.get('limit')}; proved again whenever it is loaded"
            )
        notice = str(self.card.get("notice", ""))
        return out + [f"  {line}" for line in textwrap.wrap(notice, 98, break_on_hyphens=False)]


def _parse(data: bytes) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    import safetensors
    from safetensors.numpy import load

    try:
        arrays = load(data)
        header_size = int.from_bytes(data[:8], "little")
        card = json.loads(json.loads(data[8 : 8 + header_size])["__metadata__"][_METADATA_KEY])
        if not isinstance(card, dict):
            raise ValueError("metadata is not an object")
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ModelError(f"not a zippy-batch model file: {error}") from error
    if card.get("format") != MODEL_FORMAT:
        raise ModelError(
            f"a model file of format {card.get('format')!r}, and this version reads format {MODEL_FORMAT}: another "
            "version of zippy-batch made it, and reads it; train a new model to archive with this one"
        )
    return card, arrays


def serialise(arrays: Mapping[str, NDArray[Any]], card: Mapping[str, Any]) -> bytes:
    """Arrays and card -> the bytes of a model file; equal content gives equal bytes."""
    from safetensors.numpy import save

    card = {"format": MODEL_FORMAT, **card}
    ordered = {k: np.ascontiguousarray(arrays[k]) for k in sorted(arrays)}
    return save(ordered, {_METADATA_KEY: json.dumps(card, sort_keys=True, separators=(",", ":"))})


def model_from_bytes(data: bytes, builtin: bool = False) -> Model:
    """Parse a model file; ModelError where it is none."""
    if len(data) > MAX_MODEL_BYTES:
        raise ModelError(f"a model file of {len(data)} bytes, expected at most {MAX_MODEL_BYTES}")
    card, _ = _parse(data)
    return Model(str(card.get("name", "unnamed")), hashlib.sha256(data).hexdigest(), data, builtin, card)


def _models_folder() -> Any:
    return resources.files("zippy_batch.codecs") / "models"


def builtin_names() -> list[str]:
    return sorted(
        f.name.removesuffix(".safetensors") for f in _models_folder().iterdir() if f.name.endswith(".safetensors")
    )


@lru_cache(maxsize=4)
def _builtin(name: str) -> Model:
    return model_from_bytes((_models_folder() / f"{name}.safetensors").read_bytes(), builtin=True)


def load_model(name_or_path: str) -> Model:
    """A built-in model by name, or a model file by path; UsageError where there is neither, ModelError where it is
    damaged.
    """
    if name_or_path in builtin_names():
        return _builtin(name_or_path)
    path = Path(name_or_path)
    if not path.is_file():
        raise UsageError(
            f"model {name_or_path!r}: no such file, and no built-in model of that name "
            f"(built in: {', '.join(builtin_names())})"
        )
    if path.stat().st_size > MAX_MODEL_BYTES:
        raise ModelError(f"{path}: {path.stat().st_size} bytes, expected at most {MAX_MODEL_BYTES}")
    try:
        return model_from_bytes(path.read_bytes())
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error


def builtin_model_by_id(model_id: str) -> Model | None:
    """The built-in model with this id, or None."""
    return next((m for m in map(_builtin, builtin_names()) if m.id == model_id), None)


def list_models(names: Iterable[str]) -> list[ModelSummary]:
    """Summaries of built-in models and model files; raises what `load_model` does."""
    return [ModelSummary(m.name, m.codec, m.id, len(m.data), m.card) for m in map(load_model, names)]
