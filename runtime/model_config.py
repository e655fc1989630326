"""A checkpoint's config.json as one frozen value, checked field by field.

Only what the runtime reads is taken. A field that is missing or impossible raises ModelLoadError naming file and field.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ..core.errors import ModelLoadError
from .model_dialects import FULL, NESTED_DEFAULTS, SLIDING, dialect_of

if TYPE_CHECKING:
    from collections.abc import Mapping

_REQUIRED = object()
NO_CONFIG = "a model folder needs one; is this the right folder?"
ACTIVATIONS = ("silu", "gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "relu", "relu2")


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Rotary embedding (Su et al., arXiv 2104.09864) and how its frequencies are stretched for longer contexts.

    `kind`: default; linear (position interpolation, arXiv 2306.15595); dynamic (NTK-aware, at the context length in
    use); llama3 (Llama 3.1); yarn (arXiv 2309.00071); longrope (arXiv 2402.13753). `rotary_dim` is how many dimensions
    of a head are rotated, `original_context` the length the model was trained at. `attention_factor` scales cos and sin
    (yarn, longrope). `short_factor` and `long_factor` [rotary_dim / 2] are longrope's stretches of each pair, for
    contexts up to the original and beyond. `mscale_all_dim` is yarn's, as DeepSeek's attention wants it.
    """

    kind: str = "default"
    theta: float = 10_000.0
    rotary_dim: int = 64
    factor: float = 1.0
    original_context: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float = 1.0
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()
    mscale_all_dim: float = 0.0


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """What the runtime knows of a model. Made by `ModelConfig.load`, never altered.

    `context_length` is how many tokens a sequence may have. `layer_windows[i]` is layer i's sliding window in tokens
    (a row sees itself and the window - 1 tokens before it), None where it sees everything. `attn_logit_cap` and
    `final_logit_cap` are the soft caps c * tanh(x / c), 0 where there is none. `fields` is the whole of config.json,
    for what a single family needs (`integer`, `number`, `flag` check such a field). `dtype` is the checkpoint's, as a
    torch name. `local_rope` is the rope of layers with a window where they have one of their own. A model with pictures
    or sound keeps its decoder's fields in `text_config`: those are read here. `latent_dim`: what the cache keeps of a
    token in each layer where that is one vector (multi-head latent attention), else 0.
    """

    path: Path
    architecture: str
    model_type: str
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    norm_eps: float
    hidden_act: str
    rope: RopeConfig
    local_rope: RopeConfig | None
    context_length: int
    layer_windows: tuple[int | None, ...]
    attention_bias: bool
    mlp_bias: bool
    tie_word_embeddings: bool
    attn_logit_cap: float
    final_logit_cap: float
    latent_dim: int
    dtype: str
    eos_ids: tuple[int, ...]
    bos_id: int | None
    pad_id: int | None
    fields: Mapping[str, Any] = field(repr=False, compare=False)

    @classmethod
    def load(
        cls, folder: str | Path, *, context_length: int | None = None, overrides: Mapping[str, Any] | None = None
    ) -> ModelConfig:
        """Read `folder`/config.json (and generation_config.json's end-of-text ids), with `overrides` of its fields.

        `context_length` asks for a shorter context than the model's own, or, with dynamic rope, for a longer one.
        Raises ModelLoadError.
        """
        folder = Path(folder)
        path = folder / "config.json"
        raw = {**_read_json(path, NO_CONFIG), **(overrides or {})}
        return FieldReader(path, raw).model(context_length)

    @classmethod
    def of_fields(cls, path: Path, fields: Mapping[str, Any], *, context_length: int | None = None) -> ModelConfig:
        """From fields as config.json has them, which were read from the file `path`. Raises ModelLoadError."""
        return FieldReader(path, fields).model(context_length)

    @classmethod
    def architectures(cls, folder: str | Path) -> list[str]:
        """The class names in config.json. Raises ModelLoadError."""
        path = Path(folder) / "config.json"
        return FieldReader(
            path, _read_json(path, "a model folder needs one; is this the right folder?")
        ).architectures()

    @property
    def read(self) -> FieldReader:
        """Checked access to fields that only one family has; errors name file and field."""
        return FieldReader(self.path / "config.json", self.fields)


RECOMMENDED = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


def recommended_sampling(folder: str | Path) -> dict[str, float]:
    """The sampling parameters that a model's generation_config.json recommends, by their names here.

    Greedy where it says `do_sample: false`, nothing where there is no such file. Raises ModelLoadError.
    """
    path = Path(folder) / "generation_config.json"
    if not path.exists():
        return {}
    reader = FieldReader(path, _read_json(path, ""))
    found = {name: reader.get(name, None) for name in RECOMMENDED}
    for name, value in found.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
            raise reader.error(name, f"must be a number, not {value!r}")
    given: dict[str, float] = {name: value for name, value in found.items() if value is not None}
    if given.get("top_k") == 0:  # transformers' way to say: all
        del given["top_k"]
    if reader.get("do_sample", None) is False:
        given["temperature"] = 0.0
    return given


def _read_json(path: Path, remedy: str) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ModelLoadError(f"no such file: {remedy}", path=str(path)) from None
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"cannot be read as JSON: {error}; download it again", path=str(path)) from error
    if not isinstance(value, dict):
        raise ModelLoadError(f"must hold a JSON object, not {type(value).__name__}", path=str(path))
    return value


class FieldReader:
    """Takes fields out of a config.json, complaining by file and name."""

    def __init__(self, path: Path, raw: Mapping[str, Any]) -> None:
        self.path = path
        text = raw.get("text_config")
        self.outer = raw
        self.raw: Mapping[str, Any] = raw
        if isinstance(text, dict):
            self.raw = {**NESTED_DEFAULTS.get(str(text.get("model_type")), {}), **text}
        self.is_nested = self.raw is not raw
        self.model_type = str(self.raw.get("model_type", ""))
        self.dialect = dialect_of(self.model_type)

    def error(self, name: str, message: str) -> ModelLoadError:
        theirs = ("text_config." if self.is_nested else "") + self.dialect.names.get(name, name)
        return ModelLoadError(f"field {theirs!r} {message}", path=str(self.path))

    def get(self, name: str, default: Any = _REQUIRED, *, of: Mapping[str, Any] | None = None, at: str = "") -> Any:
        """The field's value: the family's default where it is missing, `default` where it is null or there is none.

        Of a decoder in a larger model, the outer fields count where the inner ones do not say.
        """
        if of is not None:
            value = of.get(name)
        else:
            value = self._value(name)
        if value is not None:
            return value
        if default is _REQUIRED:
            raise self.error(at + name, "is missing: take the model's own config.json")
        return default

    def _value(self, name: str) -> Any:
        default = self.dialect.defaults.get(name)
        for theirs in (self.dialect.names.get(name, name), name):
            if theirs in self.raw and (self.raw[theirs] is not None or not callable(default)):
                return self.raw[theirs]
        if self.is_nested and self.outer.get(name) is not None:
            return self.outer[name]
        return default(self) if callable(default) else default

    def integer(self, name: str, default: Any = _REQUIRED) -> int:
        value = self.get(name, default)
        if type(value) is not int or value < 1:
            raise self.error(name, f"must be a positive integer, not {value!r}")
        return value

    def number(
        self, name: str, default: Any = _REQUIRED, *, of: Mapping[str, Any] | None = None, at: str = "", low: float = 0
    ) -> float:
        value = self.get(name, default, of=of, at=at)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > low:
            raise self.error(at + name, f"must be a number above {low:g}, not {value!r}")
        return float(value)

    def either(self, name: str, default: float, table: Mapping[str, Any], at: str) -> float:
        """A number from `table`, which is the field `at`, or from the top of the file."""
        if table.get(name) is not None:
            return self.number(name, of=table, at=at)
        return self.number(name, default)

    def flag(self, name: str, default: bool = False) -> bool:
        value = self.get(name, default)
        if not isinstance(value, bool):
            raise self.error(name, f"must be true or false, not {value!r}")
        return value

    def model(self, wished_context: int | None) -> ModelConfig:
        quantised = self.raw.get("quantization_config", self.outer.get("quantization_config"))
        is_mxfp4 = isinstance(quantised, dict) and quantised.get("quant_method") == "mxfp4"  # dequantised as it is read
        if quantised is not None and not is_mxfp4:
            raise self.error("quantization_config", "is set: quantised checkpoints cannot be loaded; use the plain one")
        num_layers = self.integer("num_hidden_layers")
        hidden_size = self.integer("hidden_size")
        num_heads = self.integer("num_attention_heads")
        num_kv_heads = self.integer("num_key_value_heads", num_heads)
        if num_heads % num_kv_heads:
            raise self.error("num_key_value_heads", f"({num_kv_heads}) must divide num_attention_heads ({num_heads})")
        if self.get("head_dim", None) is None and hidden_size % num_heads:
            raise self.error("hidden_size", f"({hidden_size}) must be a multiple of num_attention_heads ({num_heads})")
        head_dim = self.integer("head_dim", max(1, hidden_size // num_heads))
        hidden_act = self.get("hidden_act", "silu")
        hidden_act = self.dialect.activations.get(hidden_act, hidden_act)
        if hidden_act not in ACTIVATIONS:
            raise self.error("hidden_act", f"must be one of {', '.join(ACTIVATIONS)}, not {hidden_act!r}")
        vocab_size = self.integer("vocab_size")
        rope, local_rope, context_length = self.ropes(head_dim, wished_context)
        return ModelConfig(
            path=self.path.parent,
            architecture=self.architectures()[0],
            model_type=self.model_type,
            num_layers=num_layers,
            hidden_size=hidden_size,
            intermediate_size=self.integer("intermediate_size"),
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            vocab_size=vocab_size,
            norm_eps=self.number("rms_norm_eps", 1e-6),
            hidden_act=hidden_act,
            rope=rope,
            local_rope=local_rope,
            context_length=context_length,
            layer_windows=self.windows(num_layers),
            attention_bias=self.flag("attention_bias"),
            mlp_bias=self.flag("mlp_bias"),
            tie_word_embeddings=self.flag("tie_word_embeddings"),
            attn_logit_cap=self.cap("attn_logit_softcapping"),
            final_logit_cap=self.cap("final_logit_softcapping"),
            latent_dim=self.latent_dim(),
            dtype=self.dtype(),
            eos_ids=self.eos_ids(vocab_size),
            bos_id=self.token_id("bos_token_id", vocab_size),
            pad_id=self.token_id("pad_token_id", vocab_size),
            fields=MappingProxyType(dict(self.outer)),
        )

    def architectures(self) -> list[str]:
        names = self.outer.get("architectures")
        if names is None:
            raise ModelLoadError(
                "field 'architectures' is missing: take the model's own config.json", path=str(self.path)
            )
        if not isinstance(names, list) or not names or not isinstance(names[0], str):
            raise ModelLoadError(
                f"field 'architectures' must be a list with one class name, not {names!r}", path=str(self.path)
            )
        return [str(name) for name in names]

    def cap(self, name: str) -> float:
        return 0.0 if self.get(name, None) is None else self.number(name)

    def dtype(self) -> str:
        value = self.get("dtype", self.get("torch_dtype", "float32"))
        if value not in ("float32", "float16", "bfloat16"):
            raise self.error("dtype", f"must be float32, float16 or bfloat16, not {value!r}")
        return str(value)

    def token_id(self, name: str, vocab_size: int) -> int | None:
        value = self.get(name, None)
        if value is None:
            return None
        if isinstance(value, list) and value:
            value = value[0]
        if type(value) is not int or value >= vocab_size:
            raise self.error(name, f"must be a token id below vocab_size={vocab_size}, not {value!r}")
        return value if value >= 0 else None  # some checkpoints write -1 for "none"

    def eos_ids(self, vocab_size: int) -> tuple[int, ...]:
        """End-of-text ids of config.json, then those that generation_config.json adds."""
        found: dict[int, None] = {}
        generation = self.path.with_name("generation_config.json")
        readers = [self]
        if generation.exists():
            readers.append(FieldReader(generation, _read_json(generation, "")))
        for reader in readers:
            value = reader.get("eos_token_id", [])
            for token_id in value if isinstance(value, list) else [value]:
                if type(token_id) is not int or not 0 <= token_id < vocab_size:
                    raise reader.error("eos_token_id", f"must hold ids below {vocab_size=}, not {token_id!r}")
                found[token_id] = None
        return tuple(found)

    def windows(self, num_layers: int) -> tuple[int | None, ...]:
        """Each layer's sliding window: by `layer_types`, or by the rule of the family."""
        if self.get("sliding_window", None) is None or not self.flag("use_sliding_window", True):
            return (None,) * num_layers
        kinds = self.get("layer_types", None)
        if kinds is None:
            if self.dialect.layer_kinds is None:
                return (None,) * num_layers  # the field is there, but nothing says that a layer uses it
            kinds = self.dialect.layer_kinds(self, num_layers)
        known = (FULL, SLIDING)
        if not isinstance(kinds, list) or len(kinds) != num_layers or any(kind not in known for kind in kinds):
            raise self.error("layer_types", f"must list {num_layers} of {' / '.join(known)}, not {kinds!r}")
        if SLIDING not in kinds:
            return (None,) * num_layers
        window = self.integer("sliding_window")
        return tuple(window if kind == SLIDING else None for kind in kinds)

    def latent_dim(self) -> int:
        """Multi-head latent attention keeps a compressed vector and a rotated key that all heads share."""
        if self.get("kv_lora_rank", None) is None:
            return 0
        return self.integer("kv_lora_rank") + self.integer("qk_rope_head_dim")

    def ropes(self, head_dim: int, wished_context: int | None) -> tuple[RopeConfig, RopeConfig | None, int]:
        """The rotary parameters, those of layers with a window if they differ, and the context length they give.

        transformers 5 writes `rope_parameters` (for each kind of layer, or for all), older checkpoints `rope_theta` and
        `rope_scaling`.
        """
        is_old = not self.raw.get("rope_parameters") and self.raw.get("rope_scaling") is not None
        at = "rope_scaling" if is_old else "rope_parameters"
        table = self.raw["rope_scaling"] if is_old else self.get("rope_parameters", {})
        if not isinstance(table, dict):
            raise self.error(at, f"must be an object, not {table!r}")
        if isinstance(table.get(FULL), dict):
            rope, context = self.rope(table[FULL], f"{at}.{FULL}.", head_dim, wished_context)
            local = table.get(SLIDING)
            if not isinstance(local, dict):
                raise self.error(f"{at}.{SLIDING}", f"must be an object, not {local!r}")
            return rope, self.rope(local, f"{at}.{SLIDING}.", head_dim, None)[0], context
        rope, context = self.rope(table, f"{at}.", head_dim, wished_context)
        if self.dialect.local_theta:
            theta = self.number("rope_local_base_freq", self.dialect.local_theta)
            return rope, RopeConfig(theta=theta, rotary_dim=rope.rotary_dim), context
        return rope, None, context

    def rope(
        self, table: Mapping[str, Any], at: str, head_dim: int, wished_context: int | None
    ) -> tuple[RopeConfig, int]:
        """One set of rotary parameters and the context length it gives."""
        kind = self.get("rope_type", self.get("type", "default", of=table), of=table)
        kind = self.dialect.rope_kinds.get(kind, kind) if isinstance(kind, str) else kind
        read = _ROPE_KINDS.get(kind) if isinstance(kind, str) else None
        if read is None:
            raise self.error(f"{at}rope_type", f"must be one of {', '.join(_ROPE_KINDS)}, not {kind!r}")
        theta = self.either("rope_theta", 10_000.0, table, at)
        partial = self.either("partial_rotary_factor", 1.0, table, at)
        rotary_dim = int(head_dim * partial)
        if rotary_dim % 2 or not 0 < rotary_dim <= head_dim:
            raise self.error("head_dim", f"rotates {rotary_dim} of {head_dim} dimensions; that must be even and fit")
        trained = self.integer("max_position_embeddings")
        original = self.get("original_max_position_embeddings", None)  # Phi-3 has it beside the table
        if original is None:
            original = self.get("original_max_position_embeddings", trained, of=table)
        if type(original) is not int or original < 1:
            raise self.error(f"{at}original_max_position_embeddings", f"must be a positive integer, not {original!r}")
        options, longest = read(self, table, at, trained, original)
        if self.dialect.positions_are_stretched:
            longest = trained
        for name in ("short_factor", "long_factor"):
            if len(options.get(name, ())) not in (0, rotary_dim // 2):
                raise self.error(f"{at}{name}", f"must hold {rotary_dim // 2} numbers, not {len(options[name])}")
        context = min(longest, trained) if kind == "dynamic" else longest
        if wished_context is not None:
            if wished_context > longest:
                raise ModelLoadError(
                    f"context_length={wished_context} is more than the {longest} positions of this model (field "
                    f"'max_position_embeddings', rope {kind!r}); ask for less, or set rope scaling in config.json",
                    path=str(self.path),
                )
            context = wished_context
        if kind not in ("llama3", "yarn", "longrope"):
            original = trained
        rope = RopeConfig(kind=kind, theta=theta, rotary_dim=rotary_dim, original_context=original, **options)
        return rope, context


def _default(reader: FieldReader, table: Mapping[str, Any], at: str, trained: int, original: int) -> tuple[Any, int]:
    return {}, trained


def _scaled(reader: FieldReader, table: Mapping[str, Any], at: str, trained: int, original: int) -> tuple[Any, int]:
    """linear, dynamic: `factor` times the trained context."""
    factor = reader.number("factor", of=table, at=at)
    return {"factor": factor}, int(trained * factor)


def _llama3(reader: FieldReader, table: Mapping[str, Any], at: str, trained: int, original: int) -> tuple[Any, int]:
    """`max_position_embeddings` is the stretched length already."""
    low = reader.number("low_freq_factor", of=table, at=at)
    high = reader.number("high_freq_factor", of=table, at=at)
    if not high > low:
        raise reader.error(f"{at}high_freq_factor", f"({high:g}) must be above low_freq_factor ({low:g})")
    factor = reader.number("factor", of=table, at=at)
    return {"factor": factor, "low_freq_factor": low, "high_freq_factor": high}, trained


def _yarn(reader: FieldReader, table: Mapping[str, Any], at: str, trained: int, original: int) -> tuple[Any, int]:
    """The stretched length is `factor` times the original one, whichever of the two config.json gives as the limit."""
    factor = reader.number("factor", trained / original, of=table, at=at)

    def scale(mscale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0

    mscale, mscale_all = table.get("mscale"), table.get("mscale_all_dim")
    inferred = scale(mscale) / scale(mscale_all) if mscale and mscale_all else scale(1.0)
    truncate = table.get("truncate", True)
    options = {
        "factor": factor,
        "beta_fast": reader.number("beta_fast", 32.0, of=table, at=at),
        "beta_slow": reader.number("beta_slow", 1.0, of=table, at=at),
        "truncate": bool(truncate),
        "attention_factor": reader.number("attention_factor", inferred, of=table, at=at),
        "mscale_all_dim": float(mscale_all or 0.0),
    }
    return options, max(trained, int(original * factor))


def _longrope(reader: FieldReader, table: Mapping[str, Any], at: str, trained: int, original: int) -> tuple[Any, int]:
    """`max_position_embeddings` is the stretched length already."""
    factor = reader.number("factor", trained / original, of=table, at=at)
    inferred = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    options: dict[str, Any] = {
        "factor": factor,
        "attention_factor": reader.number("attention_factor", inferred, of=table, at=at),
    }
    for name in ("short_factor", "long_factor"):
        values = reader.get(name, of=table, at=at)
        if not isinstance(values, list) or not all(isinstance(v, (int, float)) and v > 0 for v in values):
            raise reader.error(at + name, f"must be a list of numbers above 0, not {values!r}")
        options[name] = tuple(float(value) for value in values)
    return options, trained


_ROPE_KINDS = {
    "default": _default, "linear": _scaled, "dynamic": _scaled, "llama3": _llama3, "yarn": _yarn, "longrope": _longrope,
    "su": _longrope,
}  # fmt: skip
