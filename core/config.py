"""One frozen engine configuration under SGLang's option names. Engine and CLI only fill it."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, fields
from typing import Any, Literal

from .errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """How an engine runs. `EngineConfig.of(**options)` refuses unknown names; `verify` refuses impossible values.

    `model_path` None is the built-in model. `model_impl` "auto" runs architectures that are not written here through
    transformers' code, where that allows it; "transformers" runs all so, "dslc" none. `dtype` "auto" takes the
    checkpoint's on a GPU and float32 on the CPU. `is_embedding` reads a language model as an embedding model: `encode`
    instead of `generate`. `load_format` "auto" reads *.safetensors, or a *.gguf file; "pt" reads pickles (*.bin, *.pt)
    as weights only; "dummy" reads no weights at all: random ones, for benchmarks.
    `sampling_defaults` "model": what a call of `generate` does not say (temperature, top_p, top_k, min_p, repetition
    penalty) is as the model's generation_config.json recommends; programs say for themselves.
    `skip_tokenizer_init` loads no tokenizer: ids in, ids out; outputs end at the ids that the model's files name.
    `max_total_tokens` None sizes the KV pool from `mem_fraction_static` of the free memory (GPU) or to
    `max_running_requests` contexts, at most 1 GiB (CPU). `chunked_prefill_size` -1 prefills whole prompts.
    `page_size` is in tokens. `deterministic` makes each row's arithmetic independent of its batch.
    `enable_priority_scheduling` puts a request's priority before `schedule_policy`; a waiting request takes the place
    of a running one that is lower by `priority_scheduling_preemption_threshold` or more.
    `jump_forward` is the default of requests with a constraint that do not say (`SamplingParams`).
    `prefill_attention_backend` and `decode_attention_backend` override `attention_backend` for forwards with and
    without prompt tokens. `enable_custom_logit_processor` lets requests name registered logit processors.
    On a GPU decodes of up to `cuda_graph_max_bs` requests (None: `max_running_requests`) are captured in graphs when
    the engine starts, unless `disable_cuda_graph`; `get_server_info` says what was captured, or why nothing was.
    """

    model_path: str | None = None
    tokenizer_path: str | None = None
    skip_tokenizer_init: bool = False
    revision: str | None = None
    model_impl: Literal["auto", "dslc", "transformers"] = "auto"
    sampling_defaults: Literal["openai", "model"] = "openai"
    is_embedding: bool = False
    load_format: Literal["auto", "safetensors", "pt", "gguf", "dummy"] = "auto"
    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    context_length: int | None = None
    random_seed: int | None = None
    max_running_requests: int = 256
    max_queued_requests: int | None = None
    max_total_tokens: int | None = None
    max_prefill_tokens: int = 16384
    chunked_prefill_size: int = 8192
    enable_mixed_chunk: bool = True
    mem_fraction_static: float = 0.85
    page_size: int = 1
    disable_radix_cache: bool = False
    radix_eviction_policy: str = "lru"
    schedule_policy: str = "lpm"
    schedule_conservativeness: float = 1.0
    enable_priority_scheduling: bool = False
    schedule_low_priority_values_first: bool = False
    priority_scheduling_preemption_threshold: int = 1
    attention_backend: str = "auto"
    prefill_attention_backend: str | None = None
    decode_attention_backend: str | None = None
    grammar_backend: str = "auto"
    jump_forward: bool | Literal["step"] = True
    deterministic: bool = False
    disable_overlap_schedule: bool = False
    disable_cuda_graph: bool = False
    cuda_graph_max_bs: int | None = None
    stream_interval: int = 1
    enable_custom_logit_processor: bool = False

    @classmethod
    def of(cls, **options: Any) -> EngineConfig:
        """From keyword options. Raises ConfigError for an unknown name (with the nearest known one) or a bad value."""
        known = [f.name for f in fields(cls)]
        for name in options:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else f"; known options: {', '.join(known)}"
                raise ConfigError(f"unknown engine option{hint}", field=name)
        config = cls(**options)
        config.verify()
        return config

    def verify(self) -> None:
        """Raise ConfigError naming the first impossible value."""
        for name in ("max_running_requests", "max_prefill_tokens", "page_size", "stream_interval"):
            self._positive(name)
        self._positive("priority_scheduling_preemption_threshold")
        for name in ("context_length", "max_queued_requests", "max_total_tokens", "cuda_graph_max_bs"):
            if getattr(self, name) is not None:
                self._positive(name)
        if (
            type(self.chunked_prefill_size) is not int
            or self.chunked_prefill_size == 0
            or self.chunked_prefill_size < -1
        ):
            raise ConfigError(
                f"must be a positive number of tokens, or -1 for whole prompts, not {self.chunked_prefill_size!r}",
                field="chunked_prefill_size",
            )
        if not 0.0 < self.mem_fraction_static <= 1.0:
            raise ConfigError(
                f"must be above 0 and at most 1, not {self.mem_fraction_static}", field="mem_fraction_static"
            )
        if self.skip_tokenizer_init and self.tokenizer_path is not None:
            raise ConfigError("names a tokenizer, and skip_tokenizer_init loads none", field="tokenizer_path")
        if self.jump_forward not in (True, False, "step"):
            raise ConfigError(f'must be True, "step" or False, not {self.jump_forward!r}', field="jump_forward")
        if self.sampling_defaults not in ("openai", "model"):
            raise ConfigError(f"must be openai or model, not {self.sampling_defaults!r}", field="sampling_defaults")
        formats = ("auto", "safetensors", "pt", "gguf", "dummy")
        if self.load_format not in formats:
            raise ConfigError(f"must be one of {', '.join(formats)}, not {self.load_format!r}", field="load_format")
        if self.model_impl not in ("auto", "dslc", "transformers"):
            raise ConfigError(f"must be auto, dslc or transformers, not {self.model_impl!r}", field="model_impl")
        if self.dtype not in ("auto", "float32", "bfloat16", "float16"):
            raise ConfigError(f"must be auto, float32, bfloat16 or float16, not {self.dtype!r}", field="dtype")
        if not self.schedule_conservativeness > 0:
            raise ConfigError(
                f"must be above 0, not {self.schedule_conservativeness}", field="schedule_conservativeness"
            )

        if self.disable_cuda_graph and self.cuda_graph_max_bs is not None:
            raise ConfigError("means nothing with disable_cuda_graph", field="cuda_graph_max_bs")
        if not (self.enable_priority_scheduling or self.schedule_policy == "priority"):
            for name, default in (
                ("schedule_low_priority_values_first", False),
                ("priority_scheduling_preemption_threshold", 1),
            ):
                if getattr(self, name) != default:
                    raise ConfigError("means nothing without enable_priority_scheduling", field=name)

    def _positive(self, name: str) -> None:
        value = getattr(self, name)
        if type(value) is not int or value < 1:
            raise ConfigError(f"must be a positive integer, not {value!r}", field=name)
