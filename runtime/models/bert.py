"""BERT, RoBERTa and XLM-RoBERTa encoders (arXiv 1810.04805, 1907.11692, 1911.02116): for embeddings and classification.

x = norm(word(ids) + position(i) + type(0))
for each layer:  x = norm(x + attention(x));  x = norm(x + down(gelu(up(x))))       rows see their whole sequence
RoBERTa counts positions from pad_token_id + 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..layers.attention import AttentionType, RadixAttention
from ..layers.embedding import Embedding
from ..layers.linear import Linear, MergedLinear
from ..layers.mlp import PlainMLP
from ..layers.norm import LayerNorm
from ..layers.rowwise import evenly
from .base import CausalLM
from .heads import num_labels

if TYPE_CHECKING:
    from ..attention.base import AttentionBackend
    from ..batch import ForwardBatch
    from ..memory.kv_pool import KVPool
    from ..model_config import ModelConfig


class BertLayer(nn.Module):
    """Attention and MLP, each normalised together with what it adds to."""

    def __init__(self, config: ModelConfig, layer_id: int) -> None:
        super().__init__()
        hidden, heads, eps = config.hidden_size, config.num_heads, config.norm_eps
        self.qkv = MergedLinear(hidden, {"query": hidden, "key": hidden, "value": hidden}, bias=True)
        self.attn = RadixAttention(
            heads, config.head_dim, float(config.head_dim**-0.5), heads, layer_id, attn_type=AttentionType.ENCODER_ONLY
        )
        self.o_proj = Linear(hidden, hidden, bias=True)
        self.attention_norm = LayerNorm(hidden, eps)
        self.mlp = PlainMLP(hidden, config.intermediate_size, config.hidden_act, bias=True)
        self.mlp_norm = LayerNorm(hidden, eps)

    def forward(self, x: Tensor, fb: ForwardBatch, kv_pool: KVPool, attn: AttentionBackend) -> Tensor:
        q, k, v = (part.contiguous() for part in self.qkv(x).chunk(3, dim=-1))
        x = self.attention_norm(x + self.o_proj(self.attn(q, k, v, fb, kv_pool, attn)))
        out: Tensor = self.mlp_norm(x + self.mlp(x))
        return out


class BertModel(CausalLM):
    """The encoder; its results are its hidden states."""

    task = "embed"
    pooling = "cls"
    is_bidirectional = True
    BASE_PREFIX = "bert."
    CHECKPOINT_NAMES = (
        ("layer.", "encoder.layer."),
        (".qkv.", ".attention.self.qkv."),
        (".query.", ".attention.self.query."),
        (".key.", ".attention.self.key."),
        (".value.", ".attention.self.value."),
        ("o_proj", "attention.output.dense"),
        ("attention_norm", "attention.output.LayerNorm"),
        ("mlp.up_proj", "intermediate.dense"),
        ("mlp.down_proj", "output.dense"),
        ("mlp_norm", "output.LayerNorm"),
    )

    def __init__(self, config: ModelConfig, act_dtype: torch.dtype) -> None:
        super().__init__(config, act_dtype)
        hidden = config.hidden_size
        self.bert = nn.Module()
        self.bert.embeddings = nn.ModuleDict(
            {
                "word_embeddings": Embedding(config.vocab_size, hidden),
                "position_embeddings": Embedding(config.read.integer("max_position_embeddings"), hidden),
                "token_type_embeddings": Embedding(config.read.integer("type_vocab_size", 2), hidden),
                "LayerNorm": LayerNorm(hidden, config.norm_eps),
            }
        )
        self.bert.layer = nn.ModuleList(BertLayer(config, i) for i in range(config.num_layers))
        self.add_head(config)

    def add_head(self, config: ModelConfig) -> None:
        """Make the head's layers, under the checkpoint's names."""

    def is_ignored(self, name: str) -> bool:
        return name.startswith(("cls.", "lm_head.")) or ".pooler." in f".{name}" or super().is_ignored(name)

    def forward(
        self, input_ids: Tensor, positions: Tensor, fb: ForwardBatch, kv_pool: KVPool, attn: AttentionBackend
    ) -> Tensor:
        tables = self.bert.embeddings
        x = tables["word_embeddings"](input_ids, self.act_dtype)
        x = x + tables["token_type_embeddings"](torch.zeros_like(input_ids), self.act_dtype)
        x = x + tables["position_embeddings"](positions + self.position_offset, self.act_dtype)
        x = tables["LayerNorm"](x)
        for layer in self.bert.layer:
            x = layer(x, fb, kv_pool, attn)
        return x

    def logits(self, hidden: Tensor) -> Tensor:
        return hidden.float()


class BertForSequenceClassification(BertModel):
    """classifier(tanh(pooler(x))) of the first token."""

    task = "classify"

    def add_head(self, config: ModelConfig) -> None:
        self.bert.pooler = nn.ModuleDict({"dense": Linear(config.hidden_size, config.hidden_size, bias=True)})
        self.classifier = Linear(config.hidden_size, num_labels(config), bias=True)

    def is_ignored(self, name: str) -> bool:
        return ".pooler." not in f".{name}" and super().is_ignored(name)

    def logits(self, hidden: Tensor) -> Tensor:
        out: Tensor = self.classifier(evenly(torch.tanh, self.bert.pooler["dense"](hidden))).float()
        return out


class BertForTokenClassification(BertModel):
    """classifier(x) of each token."""

    task = "classify_tokens"
    pooling = "tokens"

    def add_head(self, config: ModelConfig) -> None:
        self.classifier = Linear(config.hidden_size, num_labels(config), bias=True)

    def logits(self, hidden: Tensor) -> Tensor:
        out: Tensor = self.classifier(hidden).float()
        return out


class _Roberta:
    """Other names, and positions that begin behind the padding id."""

    BASE_PREFIX = "roberta."
    CHECKPOINT_NAMES = (("bert.", "roberta."), *BertModel.CHECKPOINT_NAMES)

    @property
    def position_offset(self) -> int:
        config: ModelConfig = self.config  # type: ignore[attr-defined]
        return (1 if config.pad_id is None else config.pad_id) + 1


class RobertaModel(_Roberta, BertModel):
    pass


class RobertaForSequenceClassification(_Roberta, BertModel):
    """out_proj(tanh(dense(x))) of the first token."""

    task = "classify"

    def add_head(self, config: ModelConfig) -> None:
        hidden = config.hidden_size
        parts = {"dense": Linear(hidden, hidden, bias=True), "out_proj": Linear(hidden, num_labels(config), bias=True)}
        self.classifier = nn.ModuleDict(parts)

    def logits(self, hidden: Tensor) -> Tensor:
        inner = evenly(torch.tanh, self.classifier["dense"](hidden))
        out: Tensor = self.classifier["out_proj"](inner).float()
        return out


class RobertaForTokenClassification(_Roberta, BertForTokenClassification):
    pass


class XLMRobertaModel(RobertaModel):
    pass


class XLMRobertaForSequenceClassification(RobertaForSequenceClassification):
    pass


class XLMRobertaForTokenClassification(RobertaForTokenClassification):
    pass


EntryClass = [
    BertModel, BertForSequenceClassification, BertForTokenClassification,
    RobertaModel, RobertaForSequenceClassification, RobertaForTokenClassification,
    XLMRobertaModel, XLMRobertaForSequenceClassification, XLMRobertaForTokenClassification,
]  # fmt: skip
