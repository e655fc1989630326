"""Cost models that were calibrated on this machine, kept on disk between processes: one for each kind of backend.

`dslc calibrate` writes one; every schedule reads it. Without one the defaults of `CostModel` hold. A file is found by
the machine's name, the backend, its tokenizer, and the options of its engine that change what things cost.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.cache_folder import cache_folder
from .cost import CostModel

if TYPE_CHECKING:
    from ..core.backend import Backend

_OPTIONS = ("model_path", "dtype", "device", "quantization", "attention_backend", "page_size", "tp_size", "cpu_threads")
_read: dict[tuple[str, str], CostModel] = {}  # (folder, key) -> what was found there


def cost_of(backend: Backend) -> CostModel:
    """The model that was calibrated for such a backend on this machine; the default where none was."""
    folder = cache_folder()
    if folder is None:
        return CostModel()
    key = backend_key(backend)
    found = _read.get((str(folder), key))
    if found is None:
        found = _read[str(folder), key] = _load(_path(folder, key))
    return found


def keep(model: CostModel, backend: Backend) -> Path | None:
    """Keep it for such backends on this machine. Returns the file; None where nothing is kept (DSLC_CACHE_DIR=off)."""
    folder = cache_folder()
    if folder is None:
        return None
    key = backend_key(backend)
    path = _path(folder, key)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(f".{os.getpid()}")
    draft.write_text(json.dumps(asdict(model)), encoding="utf-8")
    draft.replace(path)
    _read[str(folder), key] = model
    return path


def backend_key(backend: Backend) -> str:
    """Names the machine and the kind of backend."""
    config: Any = getattr(backend, "config", None)
    tokenizer = backend.tokenizer
    parts = [
        platform.node(), platform.machine(), backend.capabilities.name, tokenizer.hash if tokenizer is not None else "",
        *(f"{name}={getattr(config, name, None)}" for name in _OPTIONS),
    ]  # fmt: skip
    return hashlib.blake2b("\n".join(parts).encode(), digest_size=12).hexdigest()


def _path(folder: Path, key: str) -> Path:
    return folder / "costs" / f"{key}.json"


def _load(path: Path) -> CostModel:
    """What the file holds; the default where it is not there, or is none of ours."""
    names = {field.name for field in fields(CostModel)}
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return CostModel()
    is_ours = isinstance(data, dict) and data.keys() == names
    if not is_ours or not all(type(value) in (int, float) and value >= 0 for value in data.values()):
        return CostModel()
    return CostModel(**data)
