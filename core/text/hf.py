"""Tokenizers of the `tokenizers` library (a model folder's tokenizer.json), as dslc sees them."""

from __future__ import annotations

import functools
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..constraint import Vocabulary
from ..errors import ModelLoadError, RequestError
from .cuts import AddedText, CutFinder

if TYPE_CHECKING:
    from .template import ChatTemplate

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@functools.cache
def byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins for the 256 bytes: character -> byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


def check_text(text: str, field: str = "text") -> str:
    """Return `text`, or raise RequestError where it holds a lone surrogate: it has no UTF-8 form, hence no tokens."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise RequestError(
                f"holds the lone surrogate {text[error.start]!r} at position {error.start}, which has no UTF-8 form; "
                "decode your input with errors='replace'",
                field=field,
            ) from None
    return text


@dataclass(frozen=True, slots=True)
class SpecialToken:
    """An added token that opens roles, ends texts and so on: only template text and `dslc.special` may spell it.

    `lstrip` / `rstrip`: it swallows the white space before / after it. `shown`: it is text when it is generated, also
    where special tokens are skipped (Qwen's <think>: its file does not call it special, its template writes it).
    """

    content: str
    id: int
    lstrip: bool = False
    rstrip: bool = False
    shown: bool = False


class SpecialTokens:
    """The special tokens of a tokenizer, found in a text leftmost first and longest first."""

    def __init__(self, tokens: Iterable[SpecialToken]) -> None:
        self.by_text = {token.content: token for token in tokens if token.content}
        self.hidden_ids = frozenset(token.id for token in self.by_text.values() if not token.shown)
        by_length = sorted(self.by_text, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, by_length))) if by_length else None

    def find(self, text: str) -> str | None:
        found = self._pattern.search(text) if self._pattern else None
        return found[0] if found else None

    def split(self, text: str) -> list[str | int]:
        parts: list[str | int] = []
        pos = 0
        for match in self._pattern.finditer(text) if self._pattern else ():
            token = self.by_text[match[0]]
            before = text[pos : match.start()] if match.start() > pos else ""
            if before := before.rstrip() if token.lstrip else before:
                parts.append(before)
            parts.append(token.id)
            pos = match.end()
            if token.rstrip:
                pos += len(text[pos:]) - len(text[pos:].lstrip())
        if pos < len(text):
            parts.append(text[pos:])
        return parts

    def id_of(self, token: str) -> int:
        if token not in self.by_text:
            known = ", ".join(sorted(self.by_text)[:8])
            raise RequestError(
                f"the model's tokenizer has no special token {token!r}; it has {known or 'none'}", field="special"
            )
        return self.by_text[token].id


class TokenTables:
    """What every tokenizer kind shares once its ids and bytes are known: vocabulary, decoding, special tokens."""

    def __init__(
        self,
        *,
        size: int,
        specials: SpecialTokens,
        bos_id: int | None,
        eos_ids: tuple[int, ...],
        fingerprint: str,
        special_texts: Mapping[str, str],
        chat_template: ChatTemplate | None,
    ) -> None:
        self._size = size
        self._specials = specials
        self._bos_id = bos_id
        self._eos_ids = eos_ids
        self._hash = fingerprint
        self.special_texts = dict(special_texts)
        self._chat_template = chat_template
        self._lock = threading.Lock()
        self._vocabulary: Vocabulary | None = None
        self._special_bytes = {token.id: token.content.encode() for token in specials.by_text.values()}

    def _raw_bytes(self) -> Sequence[bytes | None]:
        """The bytes of every id, specials included or not (they are overruled). Called once."""
        raise NotImplementedError

    @property
    def vocab_size(self) -> int:
        return self._size

    @property
    def bos_id(self) -> int | None:
        return self._bos_id

    @property
    def eos_ids(self) -> tuple[int, ...]:
        return self._eos_ids

    @property
    def hash(self) -> str:
        return self._hash

    @property
    def chat_template(self) -> ChatTemplate | None:
        return self._chat_template

    @property
    def vocabulary(self) -> Vocabulary:
        with self._lock:
            if self._vocabulary is None:
                hidden = self._specials.hidden_ids
                table = tuple(None if i in hidden else raw for i, raw in enumerate(self._raw_bytes()))
                self._vocabulary = Vocabulary.of(table, self._eos_ids)
            return self._vocabulary

    def special_id(self, token: str) -> int:
        return self._specials.id_of(token)

    def find_special(self, text: str) -> str | None:
        return self._specials.find(text)

    def split_special(self, text: str) -> list[str | int]:
        return self._specials.split(check_text(text))

    def token_bytes(self, token_id: int) -> bytes | None:
        table = self.vocabulary.token_bytes
        return table[token_id] if 0 <= token_id < len(table) else None

    def text_bytes(self, token_id: int, skip_special_tokens: bool) -> bytes:
        """What the token adds to a decoded text: `token_bytes`, or a special's own text unless those are skipped.

        Raises RequestError for an id outside the vocabulary.
        """
        table = self.vocabulary.token_bytes
        if not 0 <= token_id < len(table):
            raise RequestError(f"the token id {token_id} is not below the vocabulary size {len(table)}", field="ids")
        raw = table[token_id]
        if raw is None:
            return b"" if skip_special_tokens else self._special_bytes.get(token_id, b"")
        return raw

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        return b"".join(self.text_bytes(i, skip_special_tokens) for i in ids).decode("utf-8", "replace")


class HFTokenizer(TokenTables):
    """A `tokenizers.Tokenizer`; see `core.text.tokenizer.Tokenizer` for what its methods promise.

    Two pipelines over one model: `encode_prompt` runs the file's own, `encode` one without special tokens, BOS and
    dummy prefix. Added tokens that are not special in either sense (Gemma's runs of newlines) belong to both.
    """

    def __init__(
        self,
        backend: Any,
        *,
        special_texts: Mapping[str, str] | None = None,
        eos_ids: Sequence[int] = (),
        chat_template: ChatTemplate | None = None,
        control_tokens: Iterable[str] = (),
    ) -> None:
        """`backend`: a `tokenizers.Tokenizer`, which is then ours. `special_texts`: bos_token, eos_token, ... as text.
        `eos_ids` beyond the eos_token's. `control_tokens`: added tokens that the template uses, special or not."""
        backend.no_truncation()
        backend.no_padding()
        self._prompt_backend = backend
        written = backend.to_str()
        config: dict[str, Any] = json.loads(written)
        texts = dict(special_texts or {})
        added = backend.get_added_tokens_decoder()
        control = set(control_tokens) | set(texts.values())
        is_special = {i: bool(token.special or token.content in control) for i, token in added.items()}
        specials = [
            SpecialToken(t.content, i, t.lstrip, t.rstrip, shown=not t.special)
            for i, t in added.items()
            if is_special[i]
        ]
        for text in texts.values():
            number = backend.token_to_id(text)
            if number is not None and number not in added:
                specials.append(SpecialToken(text, number))
        plain = [(i, token) for i, token in sorted(added.items()) if not is_special[i]]
        vocab = backend.get_vocab(with_added_tokens=True)
        own_eos = backend.token_to_id(texts["eos_token"]) if "eos_token" in texts else None
        all_eos = tuple(dict.fromkeys(i for i in (own_eos, *eos_ids) if i is not None))
        settings = json.dumps([sorted(texts.items()), all_eos, sorted(control)])
        super().__init__(
            size=max(vocab.values(), default=-1) + 1,
            specials=SpecialTokens(specials),
            bos_id=backend.token_to_id(texts["bos_token"]) if "bos_token" in texts else None,
            eos_ids=all_eos,
            fingerprint=hashlib.sha256((written + settings).encode()).hexdigest()[:16],
            special_texts=texts,
            chat_template=chat_template,
        )
        self._shown_added = {i: token.content for i, token in added.items() if not token.special}
        self._backend, self._new_ids = _continuation_backend(backend, config, self._specials, plain)
        # The vocabulary is in the backend: a copy of it in Python objects would be much larger.
        model = {name: value for name, value in config["model"].items() if name not in ("vocab", "merges")}
        self._config = {**config, "model": model}
        self._added_texts = [
            AddedText(token.content, i, token.lstrip, token.rstrip, token.single_word) for i, token in plain
        ]
        self._cuts: CutFinder | None = None

    def encode_prompt(self, text: str) -> list[int]:
        ids: list[int] = self._prompt_backend.encode(check_text(text)).ids
        return ids

    def encode(self, text: str) -> list[int]:
        if not text:
            return []
        ids: list[int] = self._backend.encode(check_text(text), add_special_tokens=False).ids
        if self._new_ids:
            return [self._new_ids.get(i, i) for i in ids]
        return ids

    @property
    def cuts(self) -> CutFinder:
        """What `safe_cut` asks; its `unsupported` says why this tokenizer has no cuts, if so."""
        with self._lock:
            if self._cuts is None:
                parts = {name: _without_prefix(self._config.get(name)) for name in ("normalizer", "pre_tokenizer")}
                config = {"model": self._config["model"], **parts}
                self._cuts = CutFinder.of_backend(config, self._backend, self._added_texts)
            return self._cuts

    def safe_cut(self, text: str) -> int:
        return self.cuts.cut(check_text(text))

    def _raw_bytes(self) -> Sequence[bytes | None]:
        to_bytes = _token_decoder(self._config)
        table: list[bytes | None] = [None] * self._size
        for token, number in self._prompt_backend.get_vocab(with_added_tokens=True).items():
            shown = self._shown_added.get(number)
            table[number] = to_bytes(token) if shown is None else shown.encode()
        return table


def _without_prefix(config: dict[str, Any] | None) -> dict[str, Any] | None:
    """A normaliser or pre-tokeniser that puts no space before the text; None if nothing is left of it."""
    if config is None or config["type"] == "Prepend":
        return None
    if config["type"] == "Sequence":
        key = "normalizers" if "normalizers" in config else "pretokenizers"
        parts = [part for part in map(_without_prefix, config[key]) if part is not None]
        return {**config, key: parts} if parts else None
    if config["type"] == "Metaspace":
        kept = {name: value for name, value in config.items() if name not in ("add_prefix_space", "str_rep")}
        return {**kept, "prepend_scheme": "never"}
    if config["type"] == "ByteLevel":
        return {**config, "add_prefix_space": False}
    return config


def _continuation_backend(
    backend: Any, config: dict[str, Any], specials: SpecialTokens, plain: Sequence[tuple[int, Any]]
) -> tuple[Any, dict[int, int]]:
    """The pipeline of `encode`, and its ids that differ from the tokenizer's (added tokens are numbered anew)."""
    from tokenizers import Tokenizer

    shell = {
        "version": config.get("version", "1.0"),
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": _without_prefix(config.get("normalizer")),
        "pre_tokenizer": _without_prefix(config.get("pre_tokenizer")),
        "post_processor": None,
        "decoder": None,
        "model": {"type": "BPE", "vocab": {}, "merges": []},
    }
    reachable = {t.content for t in specials.by_text.values() if _reaches(backend.model, t)}
    if reachable:
        shell["model"] = _model_without(config["model"], reachable)
        result = Tokenizer.from_str(json.dumps(shell))
    else:
        result = Tokenizer.from_str(json.dumps(shell))
        result.model = backend.model
    result.add_tokens([token for _, token in plain])
    new_ids: dict[int, int] = {}
    for number, token in plain:
        ours = result.token_to_id(token.content)
        if ours is not None and ours != number:
            new_ids[ours] = number
    return result, new_ids


def _reaches(model: Any, token: SpecialToken) -> bool:
    """Whether the model itself, given the token's text, comes up with the token."""
    if model.token_to_id(token.content) is None:
        return False
    return any(piece.id == token.id for piece in model.tokenize(token.content))


def _model_without(model: dict[str, Any], texts: set[str]) -> dict[str, Any]:
    """The model with these tokens renamed to something no text spells, so that their ids keep their places."""

    def renamed(token: str) -> str:
        return f"\x00special {sorted(texts).index(token)}\x00" if token in texts else token

    vocab = model["vocab"]
    if isinstance(vocab, dict):
        changed: dict[str, Any] = {**model, "vocab": {renamed(token): i for token, i in vocab.items()}}
    else:
        changed = {**model, "vocab": [[renamed(token), score] for token, score in vocab]}
    if "merges" in model:
        pairs = [tuple(merge.split(" ", 1)) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
        changed["merges"] = [pair for pair in pairs if not {*pair, "".join(pair)} & texts]
    if model.get("unk_token") in texts:
        changed["unk_token"] = renamed(model["unk_token"])
    return changed


def _steps(config: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    if config is None:
        return []
    if config["type"] == "Sequence":
        return [step for part in config[key] for step in _steps(part, key)]
    return [config]


def _token_decoder(config: dict[str, Any]) -> Callable[[str], bytes]:
    """How a token's text becomes its bytes, from the decoder of a tokenizer.json (or what stands in for one)."""
    steps = _steps(config.get("decoder"), "decoders")
    kinds = {step["type"] for step in steps}
    if not steps:
        steps = _steps(config.get("pre_tokenizer"), "pretokenizers")
        kinds = {step["type"] for step in steps} & {"ByteLevel", "Metaspace"} or {"Words"}
    if "ByteLevel" in kinds:
        return _byte_level_bytes
    if "CTC" in kinds:
        raise ModelLoadError(
            "a CTC decoder joins repeated tokens: its tokens have no bytes of their own", path="tokenizer.json"
        )
    if "WordPiece" in kinds:
        prefix = next(step.get("prefix", "##") for step in steps if step["type"] == "WordPiece")
        return lambda token: (token[len(prefix) :] if token.startswith(prefix) else " " + token).encode()
    if "BPEDecoder" in kinds:
        suffix = next(step.get("suffix", "</w>") for step in steps if step["type"] == "BPEDecoder")
        return lambda token: token.replace(suffix, " ").encode()
    if kinds == {"Words"}:
        return lambda token: (" " + token).encode()
    replaces = [(step["pattern"]["String"], step["content"]) for step in steps if step["type"] == "Replace"] + [
        (step.get("replacement", "▁"), " ") for step in steps if step["type"] == "Metaspace"
    ]
    return functools.partial(_spaced_bytes, replaces=replaces, byte_fallback="ByteFallback" in kinds)


def _byte_level_bytes(token: str) -> bytes:
    alphabet = byte_alphabet()
    try:
        return bytes(alphabet[char] for char in token)
    except KeyError:  # a token that was never spelt in the alphabet stands for its own text
        return token.encode()


def _spaced_bytes(token: str, replaces: Sequence[tuple[str, str]], byte_fallback: bool) -> bytes:
    if byte_fallback and (byte := _BYTE_TOKEN.fullmatch(token)):
        return bytes((int(byte[1], 16),))
    for old, new in replaces:
        token = token.replace(old, new)
    return token.encode()
