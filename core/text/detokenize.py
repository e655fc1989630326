"""Text of generated ids as they come, without ever showing what a later byte would change."""

from __future__ import annotations

import codecs
from bisect import bisect_right
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .tokenizer import Tokenizer


class IncrementalDetokenizer:
    """Decodes one output. Each id is decoded once; the concatenated results of `add` and `finish` equal
    `tokenizer.decode(all ids)`.

    A character whose last bytes are missing is held back; bytes that cannot become a character any more come out as
    U+FFFD at once. `text_len` and `num_ids` count what was given out and taken in.
    """

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.text_len = 0
        self.num_ids = 0
        # Places where an id ends and no byte is held back: how many ids, and how many characters, lie before them.
        self._whole_ids = [0]
        self._whole_chars = [0]

    def add(self, ids: Sequence[int]) -> str:
        """The text that these ids make certain. O(1) per id."""
        pieces: list[str] = []
        for token_id in ids:
            piece = self._decoder.decode(self._bytes(token_id))
            self.text_len += len(piece)
            self.num_ids += 1
            if not self._decoder.getstate()[0]:
                self._whole_ids.append(self.num_ids)
                self._whole_chars.append(self.text_len)
            pieces.append(piece)
        return "".join(pieces)

    def _bytes(self, token_id: int) -> bytes:
        raw = self._tokenizer.token_bytes(token_id)
        if raw is None:  # a special token: its text, unless it is skipped
            return self._tokenizer.decode((token_id,), self._skip).encode()
        return raw

    def finish(self) -> str:
        """What was held back: U+FFFD for an unfinished character, or nothing."""
        rest = self._decoder.decode(b"", final=True)
        self.text_len += len(rest)
        return rest

    def num_whole_ids(self, num_chars: int) -> tuple[int, int]:
        """(k, n): the most leading ids whose text lies wholly inside the first `num_chars` characters, and its length.

        decode(ids[:k]) == text[:n]. Ids without text (skipped specials) at that place are counted in. With an
        output cut at num_chars: `Output.kept_ids` = ids[:k], `kept_tail` = text[n:num_chars].
        """
        at = bisect_right(self._whole_chars, num_chars) - 1
        return self._whole_ids[at], self._whole_chars[at]


def kept_ids(
    tokenizer: Tokenizer, ids: Sequence[int], text: str, skip_special_tokens: bool = True
) -> tuple[tuple[int, ...], str]:
    """(`kept_ids`, `kept_tail`) of an output whose kept text is `text`, a beginning of the text of `ids`.

    The ids' text plus the tail is `text`; no id that ends in mid-character is kept.
    """
    detokenizer = IncrementalDetokenizer(tokenizer, skip_special_tokens)
    detokenizer.add(ids)
    count, num_chars = detokenizer.num_whole_ids(len(text))
    return tuple(ids[:count]), text[num_chars:]
