"""BERT, RoBERTa and XLM-RoBERTa encoders (arXiv 1810.04805, 1907.11692, 1911.02116): for embeddings and classification.

x = norm(word(ids) + position(i) + type(0))
for each layer:  x = norm(x + attention(x));  x = norm(x + down(gelu(up(x))))       rows see their whole sequence
RoBERTa counts positions from pad_token_id + 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

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


class BertEmbeddings(nn.Module):
    """norm(word(ids) + position(i) + type(0))."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        hidden, read = config.hidden_size, config.read
        self.word_embeddings = Embedding(config.vocab_size, hidden)
        self.position_embeddings = Embedding(read.integer("max_position_embeddings"), hidden)
        self.token_type_embeddings = Embedding(read.integer("type_vocab_size", 2), hidden)
        self.LayerNorm = LayerNorm(hidden, config.norm_eps)

    def forward(self, input_ids: Tensor, positions: Tensor, dtype: torch.dtype) -> Tensor:
        x = self.word_embeddings(input_ids, dtype) + self.token_type_embeddings(torch.zeros_like(input_ids), dtype)
        out: Tensor = self.LayerNorm(x + self.position_embeddings(positions, dtype))
        return out


class TanhHead(nn.Module):
    """out_proj(tanh(dense(x))); without `num_labels` tanh(dense(x))."""

    def __init__(self, hidden_size: int, num_labels: int | None = None) -> None:
        super().__init__()
        self.dense = Linear(hidden_size, hidden_size, bias=True)
        self.out_proj = None if num_labels is None else Linear(hidden_size, num_labels, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        inner = evenly(torch.tanh, self.dense(x))
        out: Tensor = inner if self.out_proj is None else self.out_proj(inner)
        return out


class BertEncoder(nn.Module):
    """Embeddings and layers, and the pooler that only sequence classifiers have."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embeddings = BertEmbeddings(config)
        self.layer = nn.ModuleList(BertLayer(config, i) for i in range(config.num_layers))
        self.pooler: TanhHead | None = None


class BertModel(CausalLM):
    """The encoder; its results are its hidden states."""

    task = "embed"
    pooling = "cls"
    is_bidirectional = True
    BASE_PREFIX = "bert."
    CHECKPOINT_NAMES: ClassVar[tuple[tuple[str, str], ...]] = (
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
        self.bert = BertEncoder(config)
        self.add_head(config)

    def add_head(self, config: ModelConfig) -> None:
        """Make the head's layers, under the checkpoint's names."""

    def is_ignored(self, name: str) -> bool:
        return name.startswith(("cls.", "lm_head.")) or ".pooler." in f".{name}" or super().is_ignored(name)

    def forward(
        self, input_ids: Tensor, positions: Tensor, fb: ForwardBatch, kv_pool: KVPool, attn: AttentionBackend
    ) -> Tensor:
        x: Tensor = self.bert.embeddings(input_ids, positions + self.position_offset, self.act_dtype)
        for layer in self.bert.layer:
            x = layer(x, fb, kv_pool, attn)
        return x

    def logits(self, hidden: Tensor) -> Tensor:
        return hidden.float()


class BertForSequenceClassification(BertModel):
    """classifier(tanh(pooler(x))) of the first token."""

    task = "classify"

    def add_head(self, config: ModelConfig) -> None:
        self.bert.pooler = TanhHead(config.hidden_size)
        self.classifier = Linear(config.hidden_size, num_labels(config), bias=True)

    def is_ignored(self, name: str) -> bool:
        return ".pooler." not in f".{name}" and super().is_ignored(name)

    def logits(self, hidden: Tensor) -> Tensor:
        assert self.bert.pooler is not None
        out: Tensor = self.classifier(self.bert.pooler(hidden)).float()
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


class RobertaModel(BertModel):
    """Other names, and positions that begin behind the padding id."""

    BASE_PREFIX = "roberta."
    CHECKPOINT_NAMES = (("bert.", "roberta."), *BertModel.CHECKPOINT_NAMES)

    @property
    def position_offset(self) -> int:
        return (1 if self.config.pad_id is None else self.config.pad_id) + 1


class RobertaForSequenceClassification(RobertaModel):
    """out_proj(tanh(dense(x))) of the first token."""

    task = "classify"

    def add_head(self, config: ModelConfig) -> None:
        self.classifier = TanhHead(config.hidden_size, num_labels(config))

    def logits(self, hidden: Tensor) -> Tensor:
        out: Tensor = self.classifier(hidden).float()
        return out


class RobertaForTokenClassification(RobertaModel):
    """classifier(x) of each token."""

    task = "classify_tokens"
    pooling = "tokens"

    def add_head(self, config: ModelConfig) -> None:
        self.classifier = Linear(config.hidden_size, num_labels(config), bias=True)

    def logits(self, hidden: Tensor) -> Tensor:
        out: Tensor = self.classifier(hidden).float()
        return out


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
