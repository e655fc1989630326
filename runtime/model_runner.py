"""Model, memory and attention backend together: `forward(batch) -> logits`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..core.errors import ConfigError
from .attention import choose_attention_backend
from .layers.rowwise import fix_counts
from .loader import load_model, model_folder
from .memory.kv_pool import KVPool, KVShape, tokens_in_budget
from .memory.request_table import ReqToTokenPool
from .model_config import ModelConfig
from .platform import Platform, platform_of

if TYPE_CHECKING:
    from pathlib import Path

    from ..core.config import EngineConfig
    from .batch import ForwardBatch

CPU_KV_BYTES = 1 << 30


class ModelRunner:
    """Loads the model of an EngineConfig, sizes and makes the pools, and runs forwards, one at a time.

    Raises ModelLoadError or ConfigError. `num_tokens` is the capacity of the KV pool; `folder` the model's folder (its
    tokenizer stands there too).
    """

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self.platform: Platform = platform_of(config.device)
        self.folder: Path = model_folder(config.model_path, config.revision)
        self.model_config = ModelConfig.load(self.folder, context_length=config.context_length)
        stored = getattr(torch, self.model_config.dtype)
        self.dtype: torch.dtype = (
            self.platform.default_dtype(stored) if config.dtype == "auto" else getattr(torch, config.dtype)
        )
        self.act_dtype = self.platform.act_dtype(self.dtype)
        backends = choose_attention_backend(config, self.platform)
        with torch.inference_mode():
            self.model = load_model(
                self.model_config, device=self.device, weight_dtype=self.dtype, act_dtype=self.act_dtype
            )
            self.num_tokens = self._pool_size()
            self.kv_pool = KVPool(self.num_tokens, self.kv_shape, config.page_size, self.device)
            if config.deterministic:
                fix_counts(self.model, self.act_dtype, self.device)
        self.req_to_token = ReqToTokenPool(config.max_running_requests, self.context_length, self.device)
        self.attention = backends.make(self.req_to_token)

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
        return KVShape(config.num_layers, config.num_kv_heads, config.head_dim, self.act_dtype)

    @torch.inference_mode()
    def forward(self, fb: ForwardBatch) -> Tensor:
        """Logits of the wanted rows, [R, vocab] float32, in the order of `fb.logits_rows`. Writes the rows' KV."""
        return self.logits(self.forward_hidden(fb))

    @torch.inference_mode()
    def forward_hidden(self, fb: ForwardBatch) -> Tensor:
        """Final hidden states of the wanted rows, [R, hidden]; for logits piece by piece where R x vocab is large."""
        self.attention.init_forward_metadata(fb)
        hidden: Tensor = self.model(fb.input_ids, fb.positions, fb, self.kv_pool, self.attention)
        if fb.logits_rows.shape[0] == hidden.shape[0]:
            return hidden  # ascending and without repeats: all rows
        return hidden.index_select(0, fb.logits_rows)

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """[R, hidden] -> [R, vocab] float32."""
        return self.model.logits(hidden)

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
