"""Tokenizers that come as tiktoken ranks: `*.tiktoken`, such a file under the name tokenizer.model, tekken.json."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ModelLoadError
from .cuts import CutFinder, Stage
from .hf import SpecialToken, SpecialTokens, TokenTables, check_text
from .nfa import Unsupported

if TYPE_CHECKING:
    from .template import ChatTemplate

_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LLAMA3_PATTERN = (
    _CONTRACTION + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN_PATTERN = _LLAMA3_PATTERN.replace(r"\p{N}{1,3}", r"\p{N}")
# tiktoken files hold ranks only; these are the patterns their publishers run them with, by file name.
PATTERNS = {
    "qwen.tiktoken": _QWEN_PATTERN,
    "cl100k_base.tiktoken": _LLAMA3_PATTERN,
    "tokenizer.model": _LLAMA3_PATTERN,
}
_LLAMA3_SPECIALS = (
    "<|begin_of_text|> <|end_of_text|> <|reserved_special_token_0|> <|reserved_special_token_1|> "
    "<|finetune_right_pad_id|> <|step_id|> <|start_header_id|> <|end_header_id|> <|eom_id|> <|eot_id|> <|python_tag|>"
).split()
# Special tokens that follow the ranks, where no file beside them says.
SPECIALS = {
    "qwen.tiktoken": ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{i}|>" for i in range(205))],
    "tokenizer.model": [*_LLAMA3_SPECIALS, *(f"<|reserved_special_token_{i}|>" for i in range(2, 247))],
    "cl100k_base.tiktoken": [],
}


class TiktokenTokenizer(TokenTables):
    """Byte-pair ranks with a pattern; see `core.text.tokenizer.Tokenizer` for what its methods promise."""

    def __init__(
        self,
        ranks: Mapping[bytes, int],
        pattern: str,
        *,
        specials: Mapping[str, int],
        special_texts: Mapping[str, str] | None = None,
        eos_ids: Sequence[int] = (),
        add_bos: bool = False,
        chat_template: ChatTemplate | None = None,
    ) -> None:
        """`ranks`: token bytes -> id; `specials`: text -> id. Raises ModelLoadError: the package is missing, or the
        ranks or the pattern are no good."""
        try:
            import tiktoken
        except ImportError:
            raise ModelLoadError("*.tiktoken files need the package tiktoken: pip install tiktoken") from None
        try:
            self._encoding = tiktoken.Encoding(
                "dslc", pat_str=pattern, mergeable_ranks=dict(ranks), special_tokens=dict(specials)
            )
        except (ValueError, KeyError) as error:
            raise ModelLoadError(f"the tiktoken ranks or their pattern are no good: {error}") from None
        texts = dict(special_texts or {})
        own_eos = specials.get(texts.get("eos_token", ""))
        all_eos = tuple(dict.fromkeys(i for i in (own_eos, *eos_ids) if i is not None))
        self._ranks = dict(ranks)
        self._pattern = pattern
        self._bos = specials.get(texts.get("bos_token", "")) if add_bos else None
        settings = json.dumps([pattern, sorted(specials.items()), texts, all_eos, self._bos], sort_keys=True)
        digest = hashlib.sha256(settings.encode())
        for token, rank in sorted(self._ranks.items(), key=lambda item: item[1]):
            digest.update(rank.to_bytes(4, "little") + len(token).to_bytes(4, "little") + token)
        super().__init__(
            size=max([*self._ranks.values(), *specials.values()]) + 1,
            specials=SpecialTokens(SpecialToken(text, i) for text, i in specials.items()),
            bos_id=specials.get(texts.get("bos_token", "")),
            eos_ids=all_eos,
            fingerprint=digest.hexdigest()[:16],
            special_texts=texts,
            chat_template=chat_template,
        )
        self._cuts: CutFinder | None = None

    def encode_prompt(self, text: str) -> list[int]:
        ids = self._encoding.encode(check_text(text), allowed_special="all")
        return ids if self._bos is None else [self._bos, *ids]

    def encode(self, text: str) -> list[int]:
        return self._encoding.encode_ordinary(check_text(text))

    @property
    def cuts(self) -> CutFinder:
        """What `safe_cut` asks; its `unsupported` says why this tokenizer has no cuts, if so."""
        with self._lock:
            if self._cuts is None:
                self._cuts = self._make_cuts()
            return self._cuts

    def _make_cuts(self) -> CutFinder:
        import regex

        find = regex.compile(self._pattern).finditer

        def split(text: str) -> list[tuple[str, tuple[int, int]]]:
            return [(match[0], match.span()) for match in find(text)]

        try:
            return CutFinder(stages=[Stage(split, self._pattern)], split=split)
        except (Unsupported, regex.error) as error:
            return CutFinder(unsupported=f"the pattern is not supported: {error}")

    def safe_cut(self, text: str) -> int:
        return self.cuts.cut(check_text(text))

    def _raw_bytes(self) -> Sequence[bytes | None]:
        table: list[bytes | None] = [None] * self._size
        for token, rank in self._ranks.items():
            table[rank] = token
        return table


def read_ranks(path: Path) -> dict[bytes, int]:
    """Token bytes -> id of a tiktoken file (a line each: base64, a space, the id). Raises ModelLoadError."""
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if not line.strip():
            continue
        match = re.fullmatch(rb"([A-Za-z0-9+/]+=*) (\d+)", line.strip())
        if not match:
            raise ModelLoadError(f"line {number} is not a token in base64 and its id", path=str(path))
        ranks[base64.b64decode(match[1])] = int(match[2])
    if not ranks:
        raise ModelLoadError("holds no tokens", path=str(path))
    return ranks


_TEKKEN_SPECIALS = (
    "<unk> <s> </s> [INST] [/INST] [AVAILABLE_TOOLS] [/AVAILABLE_TOOLS] [TOOL_RESULTS] [/TOOL_RESULTS] [TOOL_CALLS] "
    "[IMG] <pad> [IMG_BREAK] [IMG_END] [PREFIX] [MIDDLE] [SUFFIX] [SYSTEM_PROMPT] [/SYSTEM_PROMPT] [TOOL_CONTENT]"
).split()  # of files that list none


def read_tekken(path: Path) -> tuple[dict[bytes, int], str, dict[str, int]]:
    """(ranks, pattern, special tokens) of Mistral's tekken.json: special tokens first, ranks counted on from them.

    Raises ModelLoadError.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        settings = data["config"]
        offset, size = settings["default_num_special_tokens"], settings["default_vocab_size"]
        listed = data.get("special_tokens") or [{"rank": i, "token_str": t} for i, t in enumerate(_TEKKEN_SPECIALS)]
        specials = {f"<SPECIAL_{i}>": i for i in range(len(listed), offset)}
        specials.update((token["token_str"], token["rank"]) for token in listed)
        ranks = {base64.b64decode(t["token_bytes"]): t["rank"] + offset for t in data["vocab"][: size - offset]}
        return ranks, settings["pattern"], specials
    except (ValueError, KeyError, TypeError) as error:
        raise ModelLoadError(f"is no tekken vocabulary: {type(error).__name__}: {error}", path=str(path)) from None
