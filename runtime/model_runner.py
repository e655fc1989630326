"""Model, memory and attention backend together: `forward(batch) -> logits`."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..core.errors import ConfigError
from ..kernels.native.library import Library
from .attention import choose_attention_backend
from .graph_buckets import DecodeGraphs, decode_graphs
from .layers.packing import pack_linears, use_native_linears
from .layers.rowwise import fix_counts
from .loader import gguf_of, load_config, load_model, model_folder
from .memory.kv_pool import KVPool, KVShape, tokens_in_budget
from .memory.request_table import ReqToTokenPool
from .native_step import NativeStep, hooks_of, library, native_step
from .platform import Platform, platform_of
from .torch_step import TorchStep, torch_step

if TYPE_CHECKING:
    from pathlib import Path

    from ..core.config import EngineConfig
    from .batch import ForwardBatch

log = logging.getLogger(__name__)

CPU_KV_BYTES = 1 << 30


class ModelRunner:
    """Loads the model of an EngineConfig, sizes and makes the pools, and runs forwards, one at a time.

    Raises ModelLoadError or ConfigError. `num_tokens` is the capacity of the KV pool; `folder` the model's folder (its
    tokenizer stands there too).
    """

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self.platform: Platform = platform_of(config.device)
        self.folder: Path = model_folder(config.model_path, config.revision, config.load_format)
        gguf = gguf_of(config.model_path, self.folder, config.load_format)
        self.model_config = load_config(
            self.folder, context_length=config.context_length, impl=config.model_impl, gguf=gguf
        )
        stored = getattr(torch, self.model_config.dtype)
        self.dtype: torch.dtype = (
            self.platform.default_dtype(stored) if config.dtype == "auto" else getattr(torch, config.dtype)
        )
        self.act_dtype = self.platform.act_dtype(self.dtype)
        backends = choose_attention_backend(config, self.platform)
        with torch.inference_mode():
            self.model = load_model(
                self.model_config,
                impl=config.model_impl,
                is_embedding=config.is_embedding,
                load_format=config.load_format,
                gguf=gguf,
                device=self.device,
                weight_dtype=self.dtype,
                act_dtype=self.act_dtype,
            )
            if self.model.is_generic and config.deterministic:
                raise ConfigError("models that run through transformers' code cannot be", field="deterministic")
            self._hooks = hooks_of(self.model)
            self.num_tokens = self._pool_size()
            self.kv_pool = KVPool(self.num_tokens, self.kv_shape, config.page_size, self.device)
            self.req_to_token = ReqToTokenPool(config.max_running_requests, self.context_length, self.device)
            native = self._native_step()
            self.native = native if isinstance(native, NativeStep) else None
            self._counts_are_fixed = False
            if self.native is None:
                self._pack_linears()
                self._fix_counts()
            self.attention = backends.make(self.req_to_token)
            self._short_way = self._torch_step() if self.native is None else None
            graphs = "C++ runs the model" if self.native is not None else decode_graphs(self)
        self.graphs = graphs if isinstance(graphs, DecodeGraphs) else None
        self.how_forwards_run = {
            "forward": "C++" if self.native is not None else f"torch: {native}",
            "decode_graphs": graphs if isinstance(graphs, str) else f"batches of {list(graphs.buckets)}",
        }

    @property
    def device(self) -> torch.device:
        return self.platform.device

    @property
    def context_length(self) -> int:
        return self.model_config.context_length

    @property
    def vocab_size(self) -> int:
        return self.model_config.vocab_size

    @property
    def kv_shape(self) -> KVShape:
        config = self.model_config
        if config.latent_dim:
            return KVShape(config.num_layers, 1, config.latent_dim, self.act_dtype, is_latent=True)
        return KVShape(config.num_layers, config.num_kv_heads, config.head_dim, self.act_dtype)

    @torch.inference_mode()
    def forward(self, fb: ForwardBatch) -> Tensor:
        """Logits of the wanted rows, [R, vocab] float32, in the order of `fb.logits_rows`. Writes the rows' KV.

        Where the batch has a graph, the next forward of its size overwrites them.
        """
        if self.native is not None and self.native.serves(fb):
            return self.native.forward(fb)
        if self.graphs is not None and self.graphs.can_run(fb) and not any(self._hooks):
            return self.graphs.run(fb)
        self._fix_counts()
        self.attention.init_forward_metadata(fb)
        return self.launch(fb)

    def launch(self, fb: ForwardBatch) -> Tensor:
        """`forward` in torch, for a batch that attention has been made ready for. What a graph captures."""
        if self._short_way is not None and fb.num_rows and not any(self._hooks):
            hidden = self._short_way.forward(fb)
        else:
            hidden = self.model(fb.input_ids, fb.positions, fb, self.kv_pool, self.attention)
        if fb.logits_rows.shape[0] < hidden.shape[0]:  # else ascending and without repeats: all rows
            hidden = hidden.index_select(0, fb.logits_rows)
        return self.model.logits(hidden)

    def _has_room_to_pack(self) -> bool:
        """Whether the weights may stand in memory a second time, in an order that products like better."""
        return 2 * sum(param.nbytes for param in self.model.parameters()) <= self.platform.free_memory()

    def _fix_counts(self) -> None:
        """What torch needs to be deterministic, done before its first forward."""
        if self.config.deterministic and not self._counts_are_fixed:
            fix_counts(self.model, self.act_dtype, self.device)
            self._counts_are_fixed = True

    def _why_not_native(self) -> str | None:
        """What forbids C++ whatever it can do; None if nothing does."""
        if self.platform.name != "cpu":
            return f"the device is {self.platform.name}"
        if self._asks_for_attention():
            return "an attention backend was asked for by name"
        if not self._has_room_to_pack():
            return "a packed copy of the weights does not fit into memory"
        return None

    def _asks_for_attention(self) -> bool:
        """Whether a backend is named: then the modules run as they are written."""
        config = self.config
        asked = {config.attention_backend, config.prefill_attention_backend, config.decode_attention_backend}
        return not asked <= {"auto", None}

    def _torch_step(self) -> TorchStep | None:
        """The short way through a model in torch, on a CPU in fast mode."""
        if self.platform.name != "cpu" or self._asks_for_attention() or self.config.deterministic:
            return None
        return torch_step(self.model, self.kv_pool, self.attention)

    def _native_step(self) -> NativeStep | str:
        """The C++ forward, if it knows the model; or why torch runs it."""
        reason = self._why_not_native()
        if reason is not None:
            return reason
        native = native_step(self.model, self.kv_pool, self.req_to_token)
        if isinstance(native, str):
            log.info("%s runs in torch: %s", self.folder, native)
        return native

    def _pack_linears(self) -> None:
        """For a model that torch runs: faster matrix products on a CPU."""
        if self.platform.name != "cpu" or not self._has_room_to_pack():
            return
        loaded = library() if self._why_not_native() is None else None
        if isinstance(loaded, Library):
            use_native_linears(self.model, loaded)
        else:
            pack_linears(self.model, measured=not self.config.deterministic)

    def _pool_size(self) -> int:
        """Tokens of the KV pool, whole pages: as many as asked for, or as the memory allows."""
        config, page = self.config, self.config.page_size
        if config.max_total_tokens is not None:
            tokens = -(-config.max_total_tokens // page) * page
        elif self.platform.name == "cpu":
            wanted = config.max_running_requests * self.context_length
            tokens = min(-(-wanted // page) * page, tokens_in_budget(CPU_KV_BYTES, self.kv_shape, page))
        else:
            # what may be used of all memory, less what weights and others have taken of it
            used = self.platform.total_memory() - self.platform.free_memory()
            budget = int(self.platform.total_memory() * config.mem_fraction_static) - used
            tokens = tokens_in_budget(max(0, budget), self.kv_shape, page)
        if tokens < page:
            raise ConfigError(
                f"no memory is left for a KV pool ({self.kv_shape.bytes_per_token} bytes a token, pages of {page}); "
                "raise mem_fraction_static or set max_total_tokens",
                field="mem_fraction_static",
            )
        return tokens
