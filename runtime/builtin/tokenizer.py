"""Byte-level BPE for dslc-tiny, trained in two stages so that words can be copied.

Plain BPE learns " Balanced" as one token but splits "Balanced" at a line start or after a quote into letters, and a
small model then gets the first letter wrong. Here the merges are learnt on words without their space; a space is
merged only afterwards, with the first piece of a word. So a word has the same pieces everywhere, but for that space.
Digits stand alone.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from random import Random
from typing import TYPE_CHECKING

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from .corpus import END, FAMILIES, IM_END, IM_START, draw

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

SPECIAL = (END, IM_START, IM_END)  # ids 0, 1, 2
VOCAB_SIZE = 2560
NUM_PIECES = 1750  # of these: specials, bytes and merges without a space
DOCUMENTS_PER_FAMILY = 2500

_LEARN = r"\p{N}| |\p{L}+|[^\s\p{L}\p{N}]+|\s+"
_SPLIT = r"\p{N}| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s"

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def build(pattern: str, model: models.BPE) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return tokenizer


def texts(seed: int) -> Iterable[str]:
    rng = Random(f"tokenizer {seed}")
    for family in FAMILIES:
        for _ in range(DOCUMENTS_PER_FAMILY):
            yield draw(family, rng, held_out=False).text


def train(seed: int = 0) -> Tokenizer:
    corpus = list(texts(seed))
    first = build(_LEARN, models.BPE())
    first.train_from_iterator(
        corpus,
        trainers.BpeTrainer(
            vocab_size=NUM_PIECES,
            special_tokens=list(SPECIAL),
            show_progress=False,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        ),
    )
    learnt = json.loads(first.to_str())["model"]
    vocab: dict[str, int] = learnt["vocab"]
    merges = [(left, right) for left, right in learnt["merges"]]

    # Which pieces stand first after a space, and how often.
    space = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(" ")[0][0]
    second = build(_SPLIT, models.BPE(vocab=vocab, merges=merges))
    follows: Counter[str] = Counter()
    for encoding in second.encode_batch(corpus):
        tokens = encoding.tokens
        follows.update(after for token, after in itertools.pairwise(tokens) if token == space)
    for piece, _count in follows.most_common():
        if len(vocab) == VOCAB_SIZE:
            break
        if piece not in SPECIAL and not piece.isdigit() and not piece.startswith(space):
            vocab[space + piece] = len(vocab)
            merges.append((space, piece))
    return build(_SPLIT, models.BPE(vocab=vocab, merges=merges))


def twins(tokenizer: Tokenizer) -> list[tuple[int, int]]:
    """Ids of the same piece with and without its space."""
    vocab = tokenizer.get_vocab()
    space = tokenizer.encode(" ").tokens[0]
    return sorted(
        (spaced, vocab[token[len(space) :]])
        for token, spaced in vocab.items()
        if token.startswith(space) and token[len(space) :] in vocab
    )


def save(tokenizer: Tokenizer, folder: Path, max_len: int) -> None:
    """tokenizer.json and tokenizer_config.json as transformers reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": IM_END,
        "pad_token": END,
        "bos_token": None,
        "additional_special_tokens": [IM_START],
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_len,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
