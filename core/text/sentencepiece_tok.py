"""Tokenizers that come as a SentencePiece model (`tokenizer.model`), run by the `sentencepiece` package."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ModelLoadError
from .cuts import AddedText, CutFinder, Normalizer, Pairs
from .hf import SpecialToken, SpecialTokens, TokenTables, check_text

if TYPE_CHECKING:
    from .template import ChatTemplate

_MARK = "▁"
# normalizer_spec { add_dummy_prefix: false, remove_extra_whitespaces: false }: appended to a serialised model it is
# merged into the model's own (protobuf's rule for a message field that comes twice).
_NO_PREFIX = b"\x1a\x04\x18\x00\x20\x00"
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)  # sentencepiece_model.proto, Piece.Type
_UNIGRAM, _BPE = 1, 2  # TrainerSpec.ModelType


@dataclass(frozen=True, slots=True)
class _Model:
    """What we read of a model file: pieces as (text, type), the kind of model, whether it rewrites characters."""

    pieces: list[tuple[str, int]]
    kind: int
    rewrites: bool

    @classmethod
    def parse(cls, data: bytes) -> _Model:
        pieces: list[tuple[str, int]] = []
        kind, rewrites = _UNIGRAM, False
        for number, value in _fields(data):
            if number == 1:  # ModelProto.pieces
                piece = dict(_fields(value))
                pieces.append((bytes(piece[1]).decode(), piece.get(3, _NORMAL)))
            elif number == 2:  # trainer_spec
                kind = dict(_fields(value)).get(3, kind)
            elif number == 3:  # normalizer_spec
                rewrites = rewrites or bool(dict(_fields(value)).get(2))
        return cls(pieces, kind, rewrites)


def _fields(data: bytes | memoryview) -> Iterator[tuple[int, Any]]:
    """(field number, value) of a protobuf message: ints for varints, memoryviews for everything else."""
    view = memoryview(data)
    pos = 0

    def varint() -> int:
        nonlocal pos
        value = shift = 0
        while True:
            byte = view[pos]
            pos += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while pos < len(view):
        key = varint()
        wire = key & 7
        if wire == 0:
            yield key >> 3, varint()
            continue
        size = {1: 8, 5: 4}.get(wire) or varint()
        yield key >> 3, view[pos : pos + size]
        pos += size


class SentencePieceTokenizer(TokenTables):
    """A SentencePiece model; see `core.text.tokenizer.Tokenizer` for what its methods promise.

    `encode_prompt`: special tokens parsed, the model's own dummy prefix at the start of the text only, BOS if the
    model's tokenizer adds one. `encode` keeps every space, also where the model would drop some.
    """

    def __init__(
        self,
        data: bytes,
        *,
        special_texts: Mapping[str, str] | None = None,
        added: Sequence[SpecialToken] = (),
        eos_ids: Sequence[int] = (),
        add_bos: bool = True,
        add_eos: bool = False,
        chat_template: ChatTemplate | None = None,
    ) -> None:
        """`data`: the model file's bytes. `added`: special tokens beyond the model's control pieces.

        Raises ModelLoadError: the package is missing, or the data are no model.
        """
        try:
            import sentencepiece
        except ImportError:
            raise ModelLoadError("tokenizer.model needs the package sentencepiece: pip install sentencepiece") from None
        try:
            self._prompt_processor = sentencepiece.SentencePieceProcessor(model_proto=data)
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=data + _NO_PREFIX)
            self._model = _Model.parse(data)
        except (RuntimeError, IndexError, KeyError, ValueError) as error:
            raise ModelLoadError(f"is no SentencePiece model: {error}", path="tokenizer.model") from None
        pieces = self._model.pieces
        own = {"bos_token": self._processor.bos_id(), "eos_token": self._processor.eos_id()}
        texts = {name: pieces[i][0] for name, i in own.items() if i >= 0} | dict(special_texts or {})
        controls = [SpecialToken(text, i) for i, (text, kind) in enumerate(pieces) if kind in (_CONTROL, _UNKNOWN)]
        specials = SpecialTokens([*controls, *added])
        number_of = {text: token.id for text, token in specials.by_text.items()}
        own_eos = number_of.get(texts.get("eos_token", ""))
        all_eos = tuple(dict.fromkeys(i for i in (own_eos, *eos_ids) if i is not None))
        self._bos = number_of.get(texts.get("bos_token", "")) if add_bos else None
        self._eos = own_eos if add_eos else None
        settings = json.dumps([sorted(number_of.items()), texts, all_eos, self._bos, self._eos], sort_keys=True)
        super().__init__(
            size=max([len(pieces) - 1, *number_of.values()]) + 1,
            specials=specials,
            bos_id=number_of.get(texts.get("bos_token", "")),
            eos_ids=all_eos,
            fingerprint=hashlib.sha256(data + settings.encode()).hexdigest()[:16],
            special_texts=texts,
            chat_template=chat_template,
        )
        self._cuts: CutFinder | None = None

    def encode_prompt(self, text: str) -> list[int]:
        ids = [] if self._bos is None else [self._bos]
        for number, part in enumerate(self._specials.split(check_text(text))):
            if isinstance(part, int):
                ids.append(part)
            else:
                ids += (self._processor if number else self._prompt_processor).encode(part)
        return ids if self._eos is None else [*ids, self._eos]

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self._processor.encode(check_text(text))
        return ids

    @property
    def cuts(self) -> CutFinder:
        """What `safe_cut` asks; its `unsupported` says why this tokenizer has no cuts, if so."""
        with self._lock:
            if self._cuts is None:
                self._cuts = self._make_cuts()
            return self._cuts

    def _make_cuts(self) -> CutFinder:
        if self._model.kind not in (_UNIGRAM, _BPE):
            return CutFinder(unsupported="a SentencePiece model of whole words or characters is not supported")
        words = (text for text, kind in self._model.pieces if kind in (_NORMAL, _UNUSED))
        added = [AddedText(text, i) for i, (text, kind) in enumerate(self._model.pieces) if kind == _USER_DEFINED]
        rewrites = self._model.rewrites
        normalizer = Normalizer(self._processor.normalize, rewrites=rewrites, joins=rewrites)
        pairs = Pairs(words, _MARK, splits=False)
        return CutFinder(normalizer=normalizer, added=added, added_mark=_MARK, pairs=pairs)

    def safe_cut(self, text: str) -> int:
        return self.cuts.cut(check_text(text))

    def _raw_bytes(self) -> Sequence[bytes | None]:
        table: list[bytes | None] = [None] * self._size
        for i, (text, kind) in enumerate(self._model.pieces):
            if kind == _BYTE:
                table[i] = bytes((int(text[3:-1], 16),))
            elif kind in (_NORMAL, _USER_DEFINED, _UNUSED):
                table[i] = text.replace(_MARK, " ").encode()
        return table


def is_sentencepiece(path: Path) -> bool:
    """Whether the file looks like a serialised SentencePiece model (some publish tiktoken ranks under its name)."""
    with path.open("rb") as file:
        return file.read(1) == b"\n"  # field 1, length-delimited: the first piece
