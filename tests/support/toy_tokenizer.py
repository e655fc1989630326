"""A tokenizer small enough to know by heart: one token for each word with the space before it.

Pieces are ` ?word`, spaces, or other characters; special tokens look like `<|name|>`. The safe cut is the start of the
last piece, which later text may lengthen; everything before it is settled.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_PIECE = re.compile(r" ?\w+|\s+|[^\w\s]+")
_SPECIAL = re.compile(r"(<\|\w+\|>)")


class ToyTokenizer:
    """Numbers pieces as they come; special tokens from 1,000,000 on. Counts its `encode` calls.

    With `adds_bos`, `<|bos|>` stands before every prompt.
    """

    eos_ids = (1_000_000,)
    chat_template = None
    hash = "toy"
    vocab_size = 2_000_000

    def __init__(self, adds_bos: bool = False) -> None:
        self.ids: dict[str, int] = {}
        self.specials: dict[str, int] = {"<|end|>": 1_000_000, "<|bos|>": 1_000_001}
        self.bos_id = 1_000_001 if adds_bos else None
        self.num_encodes = 0

    def encode(self, text: str) -> list[int]:
        self.num_encodes += 1
        return [self.ids.setdefault(piece, len(self.ids)) for piece in _PIECE.findall(text)]

    def encode_prompt(self, text: str) -> list[int]:
        ids: list[int] = [] if self.bos_id is None else [self.bos_id]
        for part in self.split_special(text):
            ids += self.encode(part) if isinstance(part, str) else [part]
        return ids

    def safe_cut(self, text: str) -> int:
        starts = [match.start() for match in _PIECE.finditer(text)]
        return starts[-1] if starts else 0

    def split_special(self, text: str) -> list[str | int]:
        return [self.special_id(p) if _SPECIAL.fullmatch(p) else p for p in _SPECIAL.split(text) if p]

    def special_id(self, token: str) -> int:
        return self.specials.setdefault(token, 1_000_000 + len(self.specials))

    def find_special(self, text: str) -> str | None:
        match = _SPECIAL.search(text)
        return match[0] if match else None

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        texts = {number: text for text, number in self.ids.items()}
        specials = {number: text for text, number in self.specials.items()}
        return "".join(texts[i] if i in texts else "" if skip_special_tokens else specials[i] for i in ids)

    def token_bytes(self, token_id: int) -> bytes | None:
        return next((text.encode() for text, number in self.ids.items() if number == token_id), None)


class ToyTemplate:
    """`<|role|>` before a message and `<|end|>` and a newline behind it.

    Conversations with the role `refuses` do not pass; with the role `strips` they do for plain contents only.
    """

    def __init__(self, refuses: str = "", strips: str = "") -> None:
        self.refuses = refuses
        self.strips = strips

    def fragments(self, roles: tuple[str, ...], plain: bool = False) -> tuple[str, str] | None:
        if self.refuses in roles or (self.strips in roles and not plain):
            return None
        return f"<|{roles[-1]}|>\n", "<|end|>\n"
