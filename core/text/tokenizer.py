"""The tokenizer as dslc sees it: continuation encoding, safe cuts, token bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from ..constraint import Vocabulary

if TYPE_CHECKING:
    from .template import ChatTemplate


class Tokenizer(Protocol):
    """What the language, the compiler and the engine ask of a tokenizer. Thread-safe; immutable once made.

    A *special token* is one that its file calls special, or an added token that the model's chat template writes: text
    never becomes one by itself. The latter kind shows when it is generated, and has bytes.
    """

    @property
    def vocab_size(self) -> int:
        """Number of ids, added tokens included (the model's logits may be wider)."""

    @property
    def bos_id(self) -> int | None: ...

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Ids that end a generation: the tokenizer's own and those of the model's generation config."""

    @property
    def hash(self) -> str:
        """Names the tokenizer in plans and caches: equal only if every encoding is equal."""

    @property
    def vocabulary(self) -> Vocabulary: ...

    @property
    def chat_template(self) -> ChatTemplate | None: ...

    def encode_prompt(self, text: str) -> list[int]:
        """As transformers' `tokenizer(text).input_ids`: special tokens parsed, BOS added if the tokenizer adds one."""

    def encode(self, text: str) -> list[int]:
        """`text` as a continuation: no BOS, no dummy prefix, special tokens not parsed. encode("") == []."""

    def safe_cut(self, text: str) -> int:
        """How many leading characters c of `text` have final ids: for every string x,

        encode(text + x)[:k] == encode(text[:c]) with k = len(encode(text[:c])). The rest goes on from there:
        encode(text + x)[k:] == encode((text + x)[c:]) (a Unigram model may break ties between equal scores otherwise).
        As large as can be told cheaply; 0 is always right. Linear in the text.
        """

    def special_id(self, token: str) -> int:
        """The id of a special token given by its exact text. Raises RequestError if there is none."""

    def find_special(self, text: str) -> str | None:
        """The first special token's text that occurs in `text`, if any."""

    def split_special(self, text: str) -> list[str | int]:
        """`text` cut into plain strings and ids of the special tokens in it, in order."""

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of ids as a continuation (no leading space is dropped). Broken UTF-8 becomes U+FFFD."""

    def token_bytes(self, token_id: int) -> bytes | None:
        """The bytes a token adds to the text; None for an unused id, or one that its file calls special."""
