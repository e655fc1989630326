"""GGUF files (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md): metadata, and tensors dequantised as read.

Known kinds: F32, F16, BF16, and the block formats Q8_0, Q4_0, Q4_K, Q6_K (a Q4_K_M file has some tensors in Q6_K).
Without a config.json beside it the configuration is made from the metadata, for Llama (Mistral too), Qwen2 and Qwen3.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..core.errors import ModelLoadError

if TYPE_CHECKING:
    from pathlib import Path

Blocks = npt.NDArray[np.uint8]  # [n, bytes of a block]
Floats = npt.NDArray[np.float32]
CHUNK_BYTES = 4 << 20
SCALARS = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d",
}  # fmt: skip
FLOAT32, STRING, ARRAY = 6, 8, 9
MAX_COUNT = 1 << 28  # of entries, tensors, or elements of a list: more is damage


def _half(raw: Blocks) -> Floats:
    """[n, 2] bytes -> [n, 1]."""
    return np.ascontiguousarray(raw).view(np.float16).astype(np.float32)


def _f32(blocks: Blocks) -> Floats:
    return blocks.view(np.float32)


def _f16(blocks: Blocks) -> Floats:
    return blocks.view(np.float16).astype(np.float32)


def _bf16(blocks: Blocks) -> Floats:
    return (blocks.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


def _q8_0(blocks: Blocks) -> Floats:
    """scale, 32 signed bytes."""
    return _half(blocks[:, :2]) * blocks[:, 2:].view(np.int8)


def _q4_0(blocks: Blocks) -> Floats:
    """scale, 32 nibbles: first all low ones, then all high ones; 8 is zero."""
    nibbles = np.concatenate([blocks[:, 2:] & 15, blocks[:, 2:] >> 4], axis=1)
    return _half(blocks[:, :2]) * (nibbles.astype(np.float32) - 8)


def _q4_k(blocks: Blocks) -> Floats:
    """scale of scales, scale of minima, 8 six-bit scales and minima, 256 nibbles: value = scale q - minimum."""
    packed = blocks[:, 4:16]
    low, mid, high = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = np.concatenate([low & 63, (high & 15) | ((low >> 6) << 4)], axis=1)
    minima = np.concatenate([mid & 63, (high >> 4) | ((mid >> 6) << 4)], axis=1)
    quants = blocks[:, 16:].reshape(-1, 4, 32)
    nibbles = np.stack([quants & 15, quants >> 4], axis=2).reshape(-1, 8, 32)
    scale, least = _half(blocks[:, :2]) * scales, _half(blocks[:, 2:4]) * minima
    values: Floats = (scale[:, :, None] * nibbles - least[:, :, None]).reshape(-1, 256)
    return values


def _q6_k(blocks: Blocks) -> Floats:
    """256 low nibbles, 256 high pairs of bits, 16 signed scales, scale of scales; 32 is zero."""
    low = blocks[:, :128].reshape(-1, 2, 2, 32)
    low = np.stack([low & 15, low >> 4], axis=2)  # [n, halves, nibble, 2, 32]
    pairs = blocks[:, 128:192].reshape(-1, 2, 1, 32)
    high = np.concatenate([(pairs >> shift) & 3 for shift in (0, 2, 4, 6)], axis=2).reshape(-1, 2, 2, 2, 32)
    quants = (low | (high << 4)).astype(np.float32).reshape(-1, 16, 16) - 32
    scales = _half(blocks[:, 208:]) * blocks[:, 192:208].view(np.int8)
    return (scales[:, :, None] * quants).reshape(-1, 256)


@dataclass(frozen=True, slots=True)
class Kind:
    """How elements lie in a file: `block` elements in `size` bytes."""

    name: str
    block: int
    size: int
    read: Callable[[Blocks], Floats]


KINDS = {
    0: Kind("F32", 1, 4, _f32),
    1: Kind("F16", 1, 2, _f16),
    2: Kind("Q4_0", 32, 18, _q4_0),
    8: Kind("Q8_0", 32, 34, _q8_0),
    12: Kind("Q4_K", 256, 144, _q4_k),
    14: Kind("Q6_K", 256, 210, _q6_k),
    30: Kind("BF16", 1, 2, _bf16),
}


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One tensor under its checkpoint name. `turned_heads`: so many heads whose rotary pairs lie as neighbours."""

    name: str
    file: Path
    kind: Kind
    shape: tuple[int, ...]
    offset: int
    turned_heads: int = 0

    @property
    def num_bytes(self) -> int:
        return prod(self.shape) // self.kind.block * self.kind.size

    def values(self, start: int = 0, end: int | None = None) -> Tensor:
        """Rows [start, end) in float32."""
        row = prod(self.shape[1:])
        end = self.shape[0] if end is None else end
        row_bytes = row // self.kind.block * self.kind.size if len(self.shape) > 1 else 0
        begin = start * row_bytes
        size = (end - start) * row_bytes if row_bytes else self.num_bytes
        with self.file.open("rb") as stream:
            stream.seek(self.offset + begin)
            raw = bytearray(size)
            if stream.readinto(raw) < size:
                raise ModelLoadError(f"is cut short inside tensor {self.name!r}", path=str(self.file))
        blocks = np.frombuffer(raw, dtype=np.uint8).reshape(-1, self.kind.size)
        return torch.from_numpy(np.ascontiguousarray(self.kind.read(blocks))).view(-1, *self.shape[1:])

    def copy_into(self, target: Tensor) -> None:
        """Write the values to a tensor of this shape, whatever its dtype, some rows at a time."""
        if self.turned_heads:
            values = self.values().view(self.turned_heads, -1, 2, *self.shape[1:]).transpose(1, 2)
            target.copy_(values.reshape(self.shape))
            return
        if len(self.shape) < 2:
            target.copy_(self.values().view(self.shape))
            return
        step = max(1, CHUNK_BYTES // (4 * prod(self.shape[1:])))
        for start in range(0, self.shape[0], step):
            end = min(start + step, self.shape[0])
            target[start:end].copy_(self.values(start, end))


class _Stream:
    """Reads the header's values; every fault is a ModelLoadError naming the file."""

    def __init__(self, file: Path, stream: BinaryIO) -> None:
        self.file = file
        self.stream = stream

    def error(self, message: str) -> ModelLoadError:
        return ModelLoadError(message, path=str(self.file))

    def scalar(self, form: str) -> Any:
        raw = self.stream.read(struct.calcsize(form))
        if len(raw) < struct.calcsize(form):
            raise self.error("is cut short inside its header; download the file again")
        return struct.unpack(form, raw)[0]

    def count(self) -> int:
        number: int = self.scalar("<Q")
        if number > MAX_COUNT:
            raise self.error(f"header says {number} entries; the file is damaged")
        return number

    def text(self) -> str:
        length = self.count()
        raw = self.stream.read(length)
        if len(raw) < length:
            raise self.error("is cut short inside its header; download the file again")
        return raw.decode("utf-8", "replace")

    def value(self, kind: int) -> Any:
        if kind == STRING:
            return self.text()
        if kind == ARRAY:
            inner: int = self.scalar("<I")
            return [self.value(inner) for _ in range(self.count())]
        if kind not in SCALARS:
            raise self.error(f"header holds a value of unknown kind {kind}; the file is damaged")
        found = self.scalar(SCALARS[kind])
        return float(str(np.float32(found))) if kind == FLOAT32 else found  # 1e-06, not 9.99999997e-07


@dataclass(frozen=True, slots=True)
class GgufFile:
    """A file's metadata and its tensors under GGUF's names."""

    file: Path
    metadata: dict[str, Any]
    tensors: dict[str, GgufTensor]

    @classmethod
    def open(cls, file: Path) -> GgufFile:
        """Read the header. Raises ModelLoadError."""
        size = file.stat().st_size
        with file.open("rb") as raw:
            stream = _Stream(file, raw)
            if raw.read(4) != b"GGUF" or stream.scalar("<I") not in (2, 3):
                raise stream.error("is no GGUF file of version 2 or 3")
            num_tensors, num_fields = stream.count(), stream.count()
            metadata = {stream.text(): stream.value(stream.scalar("<I")) for _ in range(num_fields)}
            infos = []
            for _ in range(num_tensors):
                name = stream.text()
                dims = [stream.count() for _ in range(stream.scalar("<I"))]
                infos.append((name, tuple(reversed(dims)), stream.scalar("<I"), stream.scalar("<Q")))
            align = metadata.get("general.alignment", 32)
            start = -(-raw.tell() // align) * align
        tensors = {}
        for name, shape, number, offset in infos:
            if number not in KINDS:
                known = ", ".join(kind.name for kind in KINDS.values())
                raise stream.error(f"tensor {name!r} is of GGML kind {number}; known: {known}. Convert it to one")
            tensor = GgufTensor(name, file, KINDS[number], shape, start + offset)
            if shape[-1] % tensor.kind.block:
                raise stream.error(f"tensor {name!r} has rows of {shape[-1]}, no multiple of {tensor.kind.block}")
            if tensor.offset + tensor.num_bytes > size:
                raise stream.error(f"is cut short: tensor {name!r} ends beyond byte {size}; download the file again")
            tensors[name] = tensor
        return cls(file, metadata, tensors)

    @property
    def family(self) -> str:
        return str(self.metadata.get("general.architecture", ""))

    def get(self, name: str, default: Any = None) -> Any:
        """A field of the model's own, such as "block_count". Raises ModelLoadError if it is missing without default."""
        value = self.metadata.get(f"{self.family}.{name}", default)
        if value is None:
            raise ModelLoadError(f"metadata field '{self.family}.{name}' is missing", path=str(self.file))
        return value

    def config(self) -> dict[str, Any]:
        """What config.json would say. Raises ModelLoadError for a family that is not known from metadata alone."""
        classes = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
        if self.family not in classes:
            raise ModelLoadError(
                f"metadata describe the architecture {self.family!r}; without a config.json beside the file only "
                f"{', '.join(classes)} are known: put the model's config.json there",
                path=str(self.file),
            )
        heads = self.get("attention.head_count")
        embedding = self.tensors.get("token_embd.weight")
        config: dict[str, Any] = {
            "architectures": [classes[self.family]],
            "model_type": self.family,
            "num_hidden_layers": self.get("block_count"),
            "hidden_size": self.get("embedding_length"),
            "intermediate_size": self.get("feed_forward_length"),
            "num_attention_heads": heads,
            "num_key_value_heads": self.get("attention.head_count_kv", heads),
            "rms_norm_eps": self.get("attention.layer_norm_rms_epsilon"),
            "max_position_embeddings": self.get("context_length"),
            "vocab_size": embedding.shape[0] if embedding is not None else 0,
            "tie_word_embeddings": "output.weight" not in self.tensors,
            "rope_parameters": self._rope(),
            "dtype": "float32" if embedding is not None and embedding.kind.name == "F32" else "bfloat16",
        }
        size = self.get("attention.key_length", 0)
        if size:
            config["head_dim"] = size
        for ours, name in (("eos_token_id", "eos_token_id"), ("bos_token_id", "bos_token_id")):
            if f"tokenizer.ggml.{name}" in self.metadata:
                config[ours] = self.metadata[f"tokenizer.ggml.{name}"]
        return config

    def _rope(self) -> dict[str, Any]:
        rope: dict[str, Any] = {"rope_type": "default", "rope_theta": self.get("rope.freq_base", 10000.0)}
        if "rope_freqs.weight" in self.tensors:  # Llama 3.1: what each pair of dimensions is stretched by
            factors = [float(x) for x in self.tensors["rope_freqs.weight"].values().flatten()]
            stretched = {"short_factor": factors, "long_factor": factors, "attention_factor": 1.0}
            return {**rope, **stretched, "rope_type": "longrope"}
        if self.get("rope.scaling.type", "none") == "linear":
            return {**rope, "rope_type": "linear", "factor": self.get("rope.scaling.factor")}
        if self.get("rope.scaling.type", "none") not in ("none", ""):
            raise ModelLoadError(
                f"rope scaling {self.get('rope.scaling.type')!r} is not known from metadata alone: put the model's "
                "config.json beside the file",
                path=str(self.file),
            )
        return rope

    def checkpoint(self) -> list[GgufTensor]:
        """The tensors under the names of a transformers checkpoint, in file order."""
        heads = {"attn_q": self.get("attention.head_count"), "attn_k": 0}
        heads["attn_k"] = self.get("attention.head_count_kv", heads["attn_q"])
        found = []
        for name, tensor in self.tensors.items():
            if name == "rope_freqs.weight":
                continue
            parts = name.split(".")
            turned = heads.get(parts[2], 0) if self.family == "llama" and parts[0] == "blk" and len(parts) > 2 else 0
            ours = self._renamed(parts)
            found.append(GgufTensor(ours, tensor.file, tensor.kind, tensor.shape, tensor.offset, turned))
        return found

    def _renamed(self, parts: list[str]) -> str:
        end = parts[-1]
        if parts[0] == "blk" and len(parts) == 4 and parts[2] in LAYER_NAMES:
            return f"model.layers.{parts[1]}.{LAYER_NAMES[parts[2]]}.{end}"
        if parts[0] in NAMES:
            return f"{NAMES[parts[0]]}.{end}"
        return ".".join(parts)


NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
LAYER_NAMES = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm", "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
