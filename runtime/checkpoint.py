"""Safetensors checkpoints on disk: which files, which tensors in them, and their bytes.

The format (https://github.com/huggingface/safetensors#format) is 8 bytes of header length, little endian, a JSON header
{name: {"dtype", "shape", "data_offsets": [begin, end]}}, then the data. It is read here rather than through the
library so that values go from the file straight into the model's memory: a mapped file would count twice while loading.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import is_zipfile

import torch
from torch import Tensor

from ..core.errors import ModelLoadError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from io import RawIOBase

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
MAX_HEADER = 100_000_000
BUFFER_BYTES = 16 << 20
INDEX_NAME = "model.safetensors.index.json"


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor in one file: `offset` is where its bytes begin."""

    name: str
    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int

    @property
    def num_elements(self) -> int:
        return int(torch.Size(self.shape).numel())


def checkpoint_tensors(folder: Path) -> list[StoredTensor]:
    """All tensors of a model folder in file order; a name stands once. Raises ModelLoadError naming the file."""
    files = _weight_files(folder)
    tensors: dict[str, StoredTensor] = {}
    for file in files:
        for tensor in read_header(file):
            if tensor.name in tensors:
                other = tensors[tensor.name].file.name
                raise ModelLoadError(f"tensor {tensor.name!r} is also in {other}; remove one of them", path=str(file))
            tensors[tensor.name] = tensor
    _check_index(folder, tensors)
    return list(tensors.values())


@dataclass(frozen=True, slots=True)
class PickledTensor:
    """One tensor of a *.bin or *.pt file, which is mapped into memory."""

    name: str
    file: Path
    value: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.value.shape)

    def copy_into(self, target: Tensor) -> None:
        """Write the values to a tensor of this shape."""
        target.copy_(self.value)


def pickled_tensors(folder: Path) -> Iterator[PickledTensor]:
    """All tensors of pytorch_model*.bin (or other *.bin, *.pt, *.pth), file by file. Raises ModelLoadError.

    Only tensors are read: a pickle that would run code is refused by torch.
    """
    files = pickles(folder)
    if not files:
        raise ModelLoadError("no *.bin, *.pt or *.pth file: is this the right folder?", path=str(folder))
    seen: dict[str, Path] = {}
    for file in files:
        try:
            values = torch.load(file, map_location="cpu", weights_only=True, mmap=is_zipfile(file))
        except Exception as error:  # pickle, zip and torch each raise their own
            raise ModelLoadError(
                f"cannot be read as weights ({type(error).__name__}: {str(error).splitlines()[0]}); download the file "
                "again, or convert it with transformers (from_pretrained, then save_pretrained) if you trust it",
                path=str(file),
            ) from error
        if isinstance(values, dict) and isinstance(values.get("state_dict"), dict):
            values = values["state_dict"]
        if not isinstance(values, dict) or not all(isinstance(value, Tensor) for value in values.values()):
            raise ModelLoadError("holds no table of tensors", path=str(file))
        for name, value in values.items():
            if name in seen:
                raise ModelLoadError(
                    f"tensor {name!r} is also in {seen[name].name}; remove one of them", path=str(file)
                )
            seen[name] = file
            yield PickledTensor(name, file, value)


def pickles(folder: Path) -> list[Path]:
    """Files of weights that are pickles: pytorch_model*.bin if there are any, else all."""
    found = [path for pattern in ("*.bin", "*.pt", "*.pth") for path in sorted(folder.glob(pattern))]
    found = [path for path in found if path.name not in ("training_args.bin", "optimizer.pt", "scheduler.pt")]
    return [path for path in found if path.name.startswith("pytorch_model")] or found


def _weight_files(folder: Path) -> list[Path]:
    index = folder / INDEX_NAME
    if index.exists():
        names = sorted(set(_weight_map(index).values()))
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise ModelLoadError(
                f"{len(missing)} of {len(names)} shards that {INDEX_NAME} names are missing, the first is "
                f"{missing[0]!r}; download them again",
                path=str(folder),
            )
        return [folder / name for name in names]
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickled = pickles(folder)
        remedy = (
            f"only {pickled[0].name!r}, a pickle, which can run code when it is read; convert it with "
            "transformers (from_pretrained, then save_pretrained), or ask for load_format='pt' (tensors only)"
            if pickled
            else "is this the right folder, and is the download complete?"
        )
        raise ModelLoadError(f"no *.safetensors file: {remedy}", path=str(folder))
    return files


def _weight_map(index: Path) -> Mapping[str, str]:
    try:
        names = json.loads(index.read_text("utf-8"))["weight_map"]
        plain = isinstance(names, dict) and all(isinstance(v, str) and Path(v).name == v for v in names.values())
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelLoadError(f"is not a safetensors index: {type(error).__name__}: {error}", path=str(index)) from error
    if not plain:
        raise ModelLoadError("field 'weight_map' must map tensor names to file names in this folder", path=str(index))
    result: dict[str, str] = names
    return result


def _check_index(folder: Path, tensors: Mapping[str, StoredTensor]) -> None:
    index = folder / INDEX_NAME
    if not index.exists():
        return
    for name, file in _weight_map(index).items():
        if name not in tensors or tensors[name].file.name != file:
            where = f"is in {tensors[name].file.name}" if name in tensors else "is in no shard"
            raise ModelLoadError(f"says that tensor {name!r} is in {file}, but it {where}", path=str(index))


def read_header(file: Path) -> list[StoredTensor]:
    """The tensors of one file, by offset. Raises ModelLoadError when the file is cut or is not safetensors."""
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or length > min(size - 8, MAX_HEADER):
                raise ModelLoadError(f"is cut short or is no safetensors file ({size} bytes)", path=str(file))
            header = json.loads(stream.read(length))
    except FileNotFoundError:
        raise ModelLoadError("no such file", path=str(file)) from None
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"header cannot be read: {error}; download the file again", path=str(file)) from error
    if not isinstance(header, dict):
        raise ModelLoadError("header is not a JSON object", path=str(file))
    header.pop("__metadata__", None)
    tensors = [_stored(file, name, entry, 8 + length, size) for name, entry in header.items()]
    return sorted(tensors, key=lambda tensor: tensor.offset)


def _stored(file: Path, name: str, entry: Any, data_start: int, file_size: int) -> StoredTensor:
    try:
        dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        numbers = all(type(n) is int and n >= 0 for n in (*shape, begin, end))
    except (KeyError, TypeError, ValueError) as error:
        raise ModelLoadError(f"entry of tensor {name!r} is malformed: {error!r}", path=str(file)) from error
    if dtype not in DTYPES:
        raise ModelLoadError(
            f"tensor {name!r} has dtype {dtype!r}; known: {', '.join(DTYPES)}. Use the checkpoint in one of these",
            path=str(file),
        )
    tensor = StoredTensor(name, file, DTYPES[dtype], shape, data_start + (begin if numbers else 0))
    if not numbers or end - begin != tensor.num_elements * tensor.dtype.itemsize:
        raise ModelLoadError(f"tensor {name!r}: shape and data_offsets do not fit together", path=str(file))
    if data_start + end > file_size:
        raise ModelLoadError(
            f"is cut short: tensor {name!r} ends at byte {data_start + end} of {file_size}; download the file again",
            path=str(file),
        )
    return tensor


def read_into(stream: RawIOBase, stored: StoredTensor, target: Tensor) -> None:
    """Copy a tensor's values from its open file into `target` (same shape; cast to its dtype).

    A target that is not contiguous (a transposed view) is filled by rows, BUFFER_BYTES at a time.
    """
    stream.seek(stored.offset)
    if not target.is_contiguous():
        _read_rows(stream, stored, target)
        return
    flat = target.view(-1)
    if target.dtype == stored.dtype and target.device.type == "cpu":
        _read(stream, flat, stored)
        return
    step = max(1, BUFFER_BYTES // stored.dtype.itemsize)
    buffer = torch.empty(min(step, stored.num_elements), dtype=stored.dtype)
    for start in range(0, stored.num_elements, step):
        piece = buffer[: min(step, stored.num_elements - start)]
        _read(stream, piece, stored)
        flat[start : start + len(piece)].copy_(piece)


def _read_rows(stream: RawIOBase, stored: StoredTensor, target: Tensor) -> None:
    row = stored.num_elements // target.shape[0]
    step = max(1, BUFFER_BYTES // (row * stored.dtype.itemsize))
    buffer = torch.empty(min(step, target.shape[0]) * row, dtype=stored.dtype)
    for start in range(0, target.shape[0], step):
        rows = target[start : start + step]
        piece = buffer[: rows.numel()]
        _read(stream, piece, stored)
        rows.copy_(piece.view(rows.shape))


def _read(stream: RawIOBase, flat: Tensor, stored: StoredTensor) -> None:
    if flat.numel() == 0:
        return
    view = flat.view(torch.uint8).numpy().data
    while view:
        got = stream.readinto(view)
        if not got:
            raise ModelLoadError(f"is cut short inside tensor {stored.name!r}", path=str(stored.file))
        view = view[got:]
