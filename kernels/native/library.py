"""The C++ forward of a Llama-like model behind ctypes: what it is built from, its structures, and one class.

Nothing here builds: a room above does (`SOURCES`, `FLAGS`, `INCLUDED`), and gives the file to `bind`.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

HERE = Path(__file__).parent
SOURCES = (HERE / "llama.cc",)
INCLUDED = tuple(HERE / name for name in ("attention.h", "linear.h", "threads.h", "tiles.h", "vec.h"))
FLAGS = ("-O3", "-march=native", "-std=c++17", "-shared", "-fPIC", "-pthread")
MAX_HEAD_DIM = 256

_P, _I64, _F = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float


class _Linear(ctypes.Structure):
    _fields_ = (("weight", _P), ("bias", _P))


class _Layer(ctypes.Structure):
    _fields_ = (
        *((name, _P) for name in ("input_norm", "post_norm", "q_norm", "k_norm")),
        *((name, _Linear) for name in ("qkv", "o", "gate_up", "down")),
        ("keys", _P),
        ("values", _P),
        ("window", _I64),
    )


class _Model(ctypes.Structure):
    _fields_ = (
        *(
            (name, _I64)
            for name in (
                "hidden", "heads", "kv_heads", "head_dim", "rotary_dim", "inner", "vocab", "layers", "is_bf16",
            )
        ),
        *((name, _F) for name in ("eps", "scaling", "cap", "final_cap")),
        ("embedding", _P),
        ("final_norm", _P),
        ("head", _Linear),
        ("layer", ctypes.POINTER(_Layer)),
    )  # fmt: skip


class _Batch(ctypes.Structure):
    _fields_ = (
        *((name, _I64) for name in ("rows", "requests", "wanted", "groups", "threads")),
        *((name, _P) for name in ("ids", "slots", "table_rows", "prefix_lens", "extend_lens", "wanted_rows", "table")),
        ("table_stride", _I64),
        *((name, _P) for name in ("group_starts", "group_rows", "shared_lens", "trees", "cos", "sin", "logits")),
    )


@dataclass(frozen=True, slots=True)
class LinearWeights:
    """weight [out, in] bfloat16 or float32, bias [out] float32."""

    weight: Tensor
    bias: Tensor | None = None

    def _given(self) -> _Linear:
        return _Linear(_address(self.weight), _address(self.bias))


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One layer. Norm weights float32, head norms [head_dim] or None; keys and values the layer's pool tensors.

    `window` counts a row itself; None where it sees everything before it.
    """

    input_norm: Tensor
    qkv: LinearWeights
    q_norm: Tensor | None
    k_norm: Tensor | None
    o: LinearWeights
    post_norm: Tensor
    gate_up: LinearWeights
    down: LinearWeights
    keys: Tensor
    values: Tensor
    window: int | None


@dataclass(frozen=True, slots=True)
class ModelWeights:
    """A model. Tensors must stay where they are as long as the NativeLlama made of them lives."""

    heads: int
    kv_heads: int
    head_dim: int
    rotary_dim: int
    eps: float
    scaling: float
    cap: float
    final_cap: float
    embedding: Tensor
    layers: Sequence[LayerWeights]
    final_norm: Tensor
    head: LinearWeights


@dataclass(frozen=True, slots=True)
class Batch:
    """T rows of B requests, as in ForwardBatch; index tensors int64 and contiguous.

    `groups` are (request numbers, tokens shared), shorter prefixes first; `trees` the parents [extend_len] of each
    request whose rows are a tree; `cos` and `sin` [T, rotary_dim / 2] float32; `table` [rows, context] int32.
    """

    ids: Tensor
    slots: Tensor
    table_rows: Tensor
    prefix_lens: Tensor
    extend_lens: Tensor
    wanted_rows: Tensor
    table: Tensor
    cos: Tensor
    sin: Tensor
    groups: Sequence[tuple[Sequence[int], int]] = ()
    trees: Sequence[Tensor | None] | None = None


class Library:
    """The loaded library. Calls into it let go of the interpreter's lock."""

    def __init__(self, path: Path) -> None:
        self._functions = ctypes.CDLL(str(path))
        for name, result, arguments in (
            ("native_features", ctypes.c_char_p, []),
            ("llama_sizes", _I64, []),
            ("llama_new", _P, [ctypes.POINTER(_Model)]),
            ("llama_free", None, [_P]),
            ("llama_forward", ctypes.c_int, [_P, ctypes.POINTER(_Batch)]),
            ("linear_new", _P, [ctypes.POINTER(_Linear), _I64, _I64, ctypes.c_int]),
            ("linear_free", None, [_P]),
            ("linear_forward", ctypes.c_int, [_P, _P, _I64, _P, _I64]),
        ):
            function = getattr(self._functions, name)
            function.restype, function.argtypes = result, arguments
        ours = ctypes.sizeof(_Model) << 32 | ctypes.sizeof(_Layer) << 16 | ctypes.sizeof(_Batch)
        if self._functions.llama_sizes() != ours:
            raise OSError(f"{path}: structures have other sizes than here")
        self.features: str = self._functions.native_features().decode()

    def __getattr__(self, name: str) -> ctypes._NamedFuncPointer:
        return getattr(self._functions, name)  # type: ignore[no-any-return]


class NativeLinear:
    """x W^T + b with packed weights; a row's bits do not depend on the others. Any thread may call it."""

    def __init__(self, library: Library, weights: LinearWeights) -> None:
        """Raises ValueError for another dtype than bfloat16 and float32, MemoryError where memory is short."""
        self._library = library
        self._handle: int | None = None
        self.out_features, self.in_features = weights.weight.shape
        _check_dtype(weights.weight.dtype)
        is_bf16 = int(weights.weight.dtype == torch.bfloat16)
        self._bias = weights.bias  # stays where it is
        self._handle = library.linear_new(ctypes.byref(weights._given()), self.out_features, self.in_features, is_bf16)
        if not self._handle:
            raise MemoryError("no memory for packed weights")
        self._forward = library.linear_forward

    def __del__(self) -> None:
        if self._handle:
            self._library.linear_free(self._handle)

    def __call__(self, x: Tensor) -> Tensor:
        """[..., in] float32 -> [..., out] float32."""
        x = x.contiguous()
        rows = x.numel() // self.in_features
        out = torch.empty((*x.shape[:-1], self.out_features), dtype=torch.float32)
        if self._forward(self._handle, x.data_ptr(), rows, out.data_ptr(), torch.get_num_threads()):
            raise MemoryError(f"no memory for {rows} rows")
        return out


class NativeLlama:
    """Weights packed for the processor, and the forward. Not for two threads at once.

    The packed weights are a second copy; what is written to the tensors afterwards is not seen.
    """

    def __init__(self, library: Library, weights: ModelWeights) -> None:
        """Raises ValueError for dtypes or sizes that it cannot do, MemoryError where memory is short."""
        self._library, self._weights = library, weights
        self._handle: int | None = None
        dtype = weights.head.weight.dtype
        _check(weights, dtype)
        self.vocab_size = weights.head.weight.shape[0]
        layers = (_Layer * len(weights.layers))(*(_layer(layer) for layer in weights.layers))
        first = weights.layers[0]
        given = _Model(
            hidden=weights.embedding.shape[1], heads=weights.heads, kv_heads=weights.kv_heads,
            head_dim=weights.head_dim, rotary_dim=weights.rotary_dim, inner=first.down.weight.shape[1],
            vocab=self.vocab_size, layers=len(weights.layers), is_bf16=int(dtype == torch.bfloat16), eps=weights.eps,
            scaling=weights.scaling,
            cap=weights.cap, final_cap=weights.final_cap, embedding=_address(weights.embedding),
            final_norm=_address(weights.final_norm), head=weights.head._given(), layer=layers,
        )  # fmt: skip
        self._handle = library.llama_new(ctypes.byref(given))
        if not self._handle:
            raise MemoryError("no memory for packed weights")

    def __del__(self) -> None:
        if self._handle:
            self._library.llama_free(self._handle)

    def forward(self, batch: Batch) -> Tensor:
        """Logits of the wanted rows, [R, vocab] float32. Writes the rows' keys and values to the pool."""
        num = batch.wanted_rows.shape[0]
        out = torch.empty(num, self.vocab_size, dtype=torch.float32)
        given = _Batch(
            rows=batch.ids.shape[0], requests=batch.table_rows.shape[0], wanted=num, groups=len(batch.groups),
            threads=torch.get_num_threads(), ids=batch.ids.data_ptr(), slots=batch.slots.data_ptr(),
            table_rows=batch.table_rows.data_ptr(), prefix_lens=batch.prefix_lens.data_ptr(),
            extend_lens=batch.extend_lens.data_ptr(), wanted_rows=batch.wanted_rows.data_ptr(),
            table=batch.table.data_ptr(), table_stride=batch.table.stride(0), cos=batch.cos.data_ptr(),
            sin=batch.sin.data_ptr(), logits=out.data_ptr(),
        )  # fmt: skip
        kept = _groups(given, batch.groups) if batch.groups else None
        if batch.trees is not None:
            trees = (_P * len(batch.trees))(*(None if tree is None else tree.data_ptr() for tree in batch.trees))
            given.trees = ctypes.cast(trees, _P)
        status = self._library.llama_forward(self._handle, ctypes.byref(given))
        if status == 2:
            raise IndexError(f"a token id is outside of the vocabulary of {self.vocab_size}")
        if status:
            raise MemoryError(f"no memory for a forward of {given.rows} rows")
        del kept
        return out


def _groups(given: _Batch, groups: Sequence[tuple[Sequence[int], int]]) -> object:
    """Fill in the groups; what is returned must live until the call is over."""
    starts, rows = [0], list[int]()
    for members, _ in groups:
        rows += members
        starts.append(len(rows))
    arrays = [(_I64 * len(values))(*values) for values in (starts, rows, [shared for _, shared in groups])]
    given.group_starts, given.group_rows, given.shared_lens = (ctypes.cast(array, _P) for array in arrays)
    return arrays


def _layer(layer: LayerWeights) -> _Layer:
    return _Layer(
        input_norm=_address(layer.input_norm), post_norm=_address(layer.post_norm), q_norm=_address(layer.q_norm),
        k_norm=_address(layer.k_norm), qkv=layer.qkv._given(), o=layer.o._given(), gate_up=layer.gate_up._given(),
        down=layer.down._given(), keys=_address(layer.keys), values=_address(layer.values), window=layer.window or 0,
    )  # fmt: skip


def _address(tensor: Tensor | None) -> int | None:
    if tensor is None:
        return None
    if not tensor.is_contiguous():
        raise ValueError(f"a tensor of {list(tensor.shape)} is not contiguous")
    return tensor.data_ptr()


def _check_dtype(dtype: torch.dtype) -> None:
    if dtype not in (torch.bfloat16, torch.float32):
        raise ValueError(f"weights are {dtype}; bfloat16 and float32 are known")


def _check(weights: ModelWeights, dtype: torch.dtype) -> None:
    _check_dtype(dtype)
    if weights.head_dim > MAX_HEAD_DIM:
        raise ValueError(f"heads have {weights.head_dim} dimensions; at most {MAX_HEAD_DIM} are known")
    linears = [weights.head, *(one for each in weights.layers for one in (each.qkv, each.o, each.gate_up, each.down))]
    norms = [weights.final_norm]
    for each in weights.layers:
        norms += [norm for norm in (each.input_norm, each.post_norm, each.q_norm, each.k_norm) if norm is not None]
        norms += [each.keys, each.values]
    norms += [linear.bias for linear in linears if linear.bias is not None]
    if any(linear.weight.dtype != dtype for linear in linears) or weights.embedding.dtype != dtype:
        raise ValueError(f"not all matrices are {dtype}")
    if any(tensor.dtype != torch.float32 for tensor in norms):
        raise ValueError("norms, biases, keys and values must be float32")
    if weights.embedding.shape != weights.head.weight.shape:
        raise ValueError("embedding and head are of different shapes")
