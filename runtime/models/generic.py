"""Any other decoder of transformers, run by transformers' own code with attention and cache of this runtime.

transformers calls attention through a table of functions (`AttentionInterface`). One entry of it, "dslc", writes keys
and values to the paged pool and asks the attention backend, so that batching, chunks, prefix cache and scheduling work
as for the families written here. The rows of all requests go through the model as one sequence: what is not attention
must not look from row to row. `_Trial` finds out, when the model is loaded, whether that holds, and what each layer's
attention asks for; a model that is not a plain decoder is refused by name.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ...core.errors import ModelLoadError
from ..attention.ops import attend_plain
from ..layers.attention import RadixAttention
from .base import CausalLM

if TYPE_CHECKING:
    from pathlib import Path

    from ..attention.base import AttentionBackend
    from ..batch import ForwardBatch
    from ..memory.kv_pool import KVPool
    from ..model_config import ModelConfig

NAME = "dslc"
_running = threading.local()  # what attention is to do in this thread's forward


@dataclass(frozen=True, slots=True)
class _Paged:
    """A forward over the pool."""

    layers: dict[int, RadixAttention]
    fb: ForwardBatch
    kv_pool: KVPool
    attn: AttentionBackend

    def attend(self, number: int, q: Tensor, k: Tensor, v: Tensor, asked: _Asked) -> Tensor:
        layer = self.layers[number]
        layer.sinks = asked.sinks
        return layer(q, k, v, self.fb, self.kv_pool, self.attn).view(q.shape)  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class _Asked:
    """What a layer wants of attention."""

    scaling: float
    window: int | None
    softcap: float
    sinks: Tensor | None


@dataclass(slots=True)
class _Trial:
    """A forward without a pool over short sequences of these lengths; notes what every layer asks for."""

    lengths: tuple[int, ...]
    layers: dict[int, RadixAttention] = field(default_factory=dict)

    def attend(self, number: int, q: Tensor, k: Tensor, v: Tensor, asked: _Asked) -> Tensor:
        if k.shape[-1] != v.shape[-1]:
            raise _Unlike(f"layer {number} has keys of {k.shape[-1]} and values of {v.shape[-1]} dimensions")
        if number in self.layers:
            raise _Unlike(f"layer {number} attends twice")
        self.layers[number] = RadixAttention(
            q.shape[1],
            q.shape[2],
            asked.scaling,
            k.shape[1],
            number,
            logit_cap=asked.softcap,
            sliding_window=asked.window,
        )
        parts, end = [], 0
        for length in self.lengths:
            q_, k_, v_ = (x[end : end + length].transpose(0, 1).unsqueeze(0) for x in (q, k, v))
            mask = torch.full((length, length), float("-inf"), device=q.device).triu(1)
            parts.append(attend_plain(q_, k_, v_, mask, asked.scaling, asked.softcap)[0][0].transpose(0, 1))
            end += length
        return torch.cat(parts)


class _Unlike(Exception):
    """Why a model is no plain decoder."""


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **rest: Any,
) -> tuple[Tensor, None]:
    """transformers' attention function: query [1, heads, T, D], key and value [1, kv_heads, T, D] -> [1, T, heads, D].

    `attention_mask` is what `_mask` gave: None, or a window.
    """
    window = sliding_window or (None if attention_mask is None else int(attention_mask))
    scaling = float(query.shape[-1] ** -0.5) if scaling is None else float(scaling)
    q, k, v = (x[0].transpose(0, 1).contiguous() for x in (query, key, value))
    asked = _Asked(scaling, window, float(softcap or 0.0), s_aux)
    number: Any = getattr(module, "layer_idx", None)
    if number is None:
        raise _Unlike(f"{type(module).__name__} does not say which layer it is")
    return _running.forward.attend(number, q, k, v, asked).unsqueeze(0), None


def _mask(
    *, mask_function: Any = None, local_size: int | None = None, device: Any = None, **rest: Any
) -> Tensor | None:
    """transformers' mask function: no mask, or the size of the window that the layers have."""
    trial = _running.forward
    if isinstance(trial, _Trial) and len(trial.lengths) == 1 and mask_function is not None:  # packed ones have another
        sees = {(q, k): bool(mask_function(0, 0, torch.tensor(q), torch.tensor(k))) for q, k in ((0, 1), (0, 0))}
        if sees[0, 1] or not sees[0, 0]:
            raise _Unlike("its rows see what comes after them")
        if local_size is not None and not mask_function(0, 0, torch.tensor(local_size), torch.tensor(1)):
            raise _Unlike(f"it attends in chunks of {local_size} tokens")
    return None if local_size is None else torch.tensor(local_size)


def _register() -> None:
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(NAME, _attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, _mask)


def is_known_to_transformers(architecture: str) -> bool:
    """Whether transformers has a decoder of that name that calls attention through its interface."""
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as DECODERS

    if architecture not in DECODERS.values():
        return False
    cls = getattr(transformers, architecture, None)
    return bool(getattr(cls, "_supports_attention_backend", False))


def standard_fields(folder: Path) -> dict[str, Any]:
    """The fields of config.json that the runtime needs, under their usual names, as transformers reads them.

    Raises ModelLoadError.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder)
        text = config.get_text_config(decoder=True)
    except Exception as error:  # transformers raises whatever the family's configuration class raises
        raise ModelLoadError(
            f"transformers cannot read it: {type(error).__name__}: {error}", path=str(folder / "config.json")
        ) from error
    heads = text.num_attention_heads
    return {
        "num_hidden_layers": text.num_hidden_layers,
        "hidden_size": text.hidden_size,
        "num_attention_heads": heads,
        "num_key_value_heads": getattr(text, "num_key_value_heads", None) or heads,
        "head_dim": getattr(text, "head_dim", None) or text.hidden_size // heads,
        "vocab_size": text.vocab_size,
        "max_position_embeddings": text.max_position_embeddings,
        # what only families written here read, and other families may write in other ways
        "intermediate_size": 1,
        "hidden_act": "silu",
        "rope_parameters": {"rope_type": "default"},
        "partial_rotary_factor": 1.0,
        "sliding_window": None,
        "layer_types": None,
        "rms_norm_eps": 1e-6,
        "kv_lora_rank": None,
        "attention_bias": False,
        "mlp_bias": False,
    }


class _Hidden:
    """What a decoder of transformers gives, with nothing but hidden states: any other part of it is None."""

    def __init__(self, last_hidden_state: Tensor) -> None:
        self.last_hidden_state = last_hidden_state

    def __getitem__(self, index: Any) -> Any:
        return (self.last_hidden_state,)[index]

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


class _Given(nn.Module):
    """Stands where a ForCausalLM has its decoder: gives hidden states that are there already."""

    @property
    def decoder(self) -> _Given:
        """Some models have it one level deeper."""
        return self

    def forward(self, *args: Any, inputs_embeds: Tensor, **rest: Any) -> Any:
        return _Hidden(inputs_embeds)


class TransformersForCausalLM(CausalLM):
    """A decoder of transformers. Not for deterministic mode: its layers are not row-wise."""

    is_generic = True

    def __init__(self, config: ModelConfig, act_dtype: torch.dtype, model: Any) -> None:
        super().__init__(config, act_dtype)
        self.decoder = model.base_model
        self.head = model
        setattr(model, model.base_model_prefix, _Given())
        self.layers = self._tried()

    @classmethod
    def loaded(cls, config: ModelConfig, device: torch.device, act_dtype: torch.dtype) -> TransformersForCausalLM:
        """The model of `config.path` with its weights. Raises ModelLoadError."""
        import transformers

        _register()
        family = getattr(transformers, config.architecture)
        try:
            model, info = family.from_pretrained(
                config.path, dtype=act_dtype, attn_implementation=NAME, output_loading_info=True, use_safetensors=True
            )
        except Exception as error:  # of the family's code, of safetensors, of the OS
            raise ModelLoadError(f"transformers cannot load it: {error!r}", path=str(config.path)) from error
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            if info.get(kind):
                names = sorted(map(str, info[kind]))
                raise ModelLoadError(
                    f"{len(names)} {kind.replace('_', ' ')}, the first is {names[0]}; does config.json belong to these "
                    "weights?",
                    path=str(config.path),
                )
        return cls(config, act_dtype, model.to(device).eval())

    def forward(
        self, input_ids: Tensor, positions: Tensor, fb: ForwardBatch, kv_pool: KVPool, attn: AttentionBackend
    ) -> Tensor:
        return self._run(_Paged(self.layers, fb, kv_pool, attn), input_ids, positions)

    def logits(self, hidden: Tensor) -> Tensor:
        out: Tensor = self.head(inputs_embeds=hidden.unsqueeze(0), use_cache=False).logits
        return out[0].float()

    def _run(self, forward: _Paged | _Trial, input_ids: Tensor, positions: Tensor) -> Tensor:
        _running.forward = forward
        try:
            out = self.decoder(input_ids=input_ids[None], position_ids=positions[None], use_cache=False)
        finally:
            del _running.forward
        hidden: Tensor = out.last_hidden_state
        return hidden[0]

    def _tried(self) -> dict[int, RadixAttention]:
        """The layers' attention, after a trial that shows that rows meet nowhere else."""
        device = next(self.decoder.parameters()).device
        ids = torch.tensor([1, 2, 3, 2, 1], device=device) % self.config.vocab_size
        together = _Trial((3, 2))
        alone = _Trial((2,))
        try:
            with torch.inference_mode():
                both = self._run(together, ids, torch.tensor([0, 1, 2, 0, 1], device=device))
                second = self._run(alone, ids[3:], torch.tensor([0, 1], device=device))
            if not torch.allclose(both[3:].float(), second.float(), atol=1e-2, rtol=1e-2):
                raise _Unlike("its rows meet outside attention")
            self._check(together.layers)
        except _Unlike as why:
            raise ModelLoadError(
                f"{self.config.architecture} is not a plain decoder: {why}; it cannot be run",
                path=str(self.config.path),
            ) from None
        return together.layers

    def _check(self, layers: dict[int, RadixAttention]) -> None:
        config = self.config
        if sorted(layers) != list(range(config.num_layers)):
            raise _Unlike(f"{len(layers)} of its {config.num_layers} layers attend")
        shapes = {(layer.num_kv_heads, layer.head_dim) for layer in layers.values()}
        if shapes != {(config.num_kv_heads, config.head_dim)}:
            raise _Unlike(f"its layers' keys have (heads, size) {sorted(shapes)}")
