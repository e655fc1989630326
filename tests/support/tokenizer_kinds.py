"""Small tokenizers of every kind that models are published with, trained here, with the real kinds' pipelines.

`folder(kind)` writes one as a model folder (tokenizer.json, tokenizer_config.json) and returns its path.
"""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path
from typing import Any

CORPUS = """\
The quick brown fox jumps over the lazy dog. It's 12:45 and we're late; they'll wait, I've heard, don't worry.
Question: what is 2+2? Answer: 4. In 1984 there were 3,456,789 people; 100% of them said "yes" (or 'no').
def main(argv: list[str]) -> int:
    for i in range(10):
        print(f"{i:>4} {argv[i]!r}")
\treturn 0  # done

{"name": "Ada", "age": 36, "tags": ["a", "b"], "ok": true, "none": null}
Übergrößenträger essen Käse. Où est la bibliothèque ? El niño comió piñas mañana. Ελληνικά, русский текст, עברית.
日本語のテキストです。東京に行きました。 中文文本，没有空格。 한국어 문장입니다. हिन्दी वाक्य है। ภาษาไทย
7 77 777 7777 77777 777777 777 777 777 !! !!! !!!! aa aaa aaaa 日日 日日日
Emoji 😀 😃 👍🏽 👨‍👩‍👧‍👦 🇫🇷 and signs → ≤ ≠ ∑ √ € £ ½ ² ™ …
HelloWorld camelCase SCREAMING_CASE snake_case kebab-case http://example.com/a/b?c=d#e user@example.org
  two leading spaces,   three between,    four; trailing  \n\n\n\nA new paragraph. A new line.\r\nWindows line.
"""

PATTERNS = {
    "llama3": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+",
    "qwen2": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+",
    "o200k": "|".join(
        (
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
            r"\p{N}{1,3}",
            r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
            r"\s*[\r\n]+",
            r"\s+(?!\S)",
            r"\s+",
        )
    ),
    "deepseek": r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

BYTE_LEVEL = ("gpt2", "llama3", "qwen2", "o200k", "deepseek", "starcoder", "neox", "triples")
SPACED = ("llama2", "mistral", "metaspace", "gemma", "unigram")
KINDS = (*BYTE_LEVEL, *SPACED, "bert")


def _byte_level(kind: str) -> Any:
    from tokenizers import (
        AddedToken,
        Regex,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        processors,
        trainers,
    )

    tokenizer = Tokenizer(models.BPE(ignore_merges=kind == "llama3"))
    unsplit = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    split = [pre_tokenizers.Split(Regex(PATTERNS[kind]), "isolated")] if kind in PATTERNS else []
    if kind == "deepseek":
        split[:0] = [
            pre_tokenizers.Split(Regex(r"\p{N}{1,3}"), "isolated"),
            pre_tokenizers.Split(Regex("[一-龥぀-ゟ゠-ヿ]+"), "isolated"),
        ]
    if kind == "starcoder":
        split = [pre_tokenizers.Digits(individual_digits=True)]
    if kind == "triples":  # Falcon's way with digits
        split = [pre_tokenizers.Split(Regex("[0-9][0-9][0-9]"), "isolated")]
    whole = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = (
        pre_tokenizers.Sequence([*split, unsplit if kind in PATTERNS else whole]) if split else whole
    )
    tokenizer.decoder = decoders.ByteLevel()
    if kind in ("qwen2", "neox"):
        tokenizer.normalizer = normalizers.NFC()
    trainer = trainers.BpeTrainer(
        vocab_size=700, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False, special_tokens=[]
    )
    tokenizer.train_from_iterator([CORPUS] * 3, trainer)
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    if kind == "llama3":
        bos = tokenizer.token_to_id("<|endoftext|>")
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", bos)]
        )
    if kind == "qwen2":
        tokenizer.add_tokens([AddedToken(text, normalized=False) for text in ("<think>", "</think>", "<tool_call>")])
    if kind == "neox":
        tokenizer.add_tokens([AddedToken(" " * n, normalized=True) for n in range(24, 1, -1)])
    if kind == "deepseek":
        tokenizer.add_tokens(["<｜User｜>", "<｜Assistant｜>"])  # role marks that are not special: so published
    return tokenizer


def _with_byte_tokens(tokenizer: Any) -> dict[str, Any]:
    """The tokenizer's JSON with ids 0..2 for <unk> <s> </s>, 3..258 for bytes, as SentencePiece numbers them."""
    config: dict[str, Any] = json.loads(tokenizer.to_str())
    model = config["model"]
    lead = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁▁", "▁▁▁▁", "\n\n", "s>"]
    pieces = [*lead, *(token for token in sorted(model["vocab"], key=model["vocab"].get) if token not in lead)]
    merges = [["▁", "▁"], ["▁▁", "▁▁"], *model["merges"]]
    model["vocab"] = {piece: i for i, piece in enumerate(pieces)}
    model["merges"] = [pair for pair in merges if all(part in model["vocab"] for part in (*pair, "".join(pair)))]
    model.update(byte_fallback=True, fuse_unk=True, unk_token="<unk>")
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    config["added_tokens"] = [{"id": i, "content": lead[i], **flags} for i in range(3)]
    return config


def _spaced(kind: str) -> Any:
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    tokenizer.train_from_iterator([CORPUS] * 3, trainers.BpeTrainer(vocab_size=500, show_progress=False))
    tokenizer = Tokenizer.from_str(json.dumps(_with_byte_tokens(tokenizer)))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.pre_tokenizer = None  # type: ignore[assignment]
    if kind == "llama2":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    elif kind == "mistral":
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    elif kind == "metaspace":
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    else:
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
        tokenizer.add_tokens([AddedToken("\n" * n, normalized=False) for n in range(2, 9)])
        tokenizer.add_tokens([AddedToken(text, normalized=False) for text in ("<start_of_turn>", "<end_of_turn>")])
    tokenizer.decoder = decoders.Sequence(steps if kind == "gemma" else [*steps, decoders.Strip(" ", 1, 0)])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def _unigram() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    tokenizer.train_from_iterator(
        CORPUS.splitlines() * 3,
        trainers.UnigramTrainer(
            vocab_size=420, special_tokens=["<unk>", "<s>", "</s>"], unk_token="<unk>", show_progress=False
        ),
    )
    return tokenizer


def _bert() -> Any:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=400, special_tokens=specials, show_progress=False)
    tokenizer.train_from_iterator(CORPUS.splitlines() * 3, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer


def backend(kind: str) -> Any:
    """A fresh `tokenizers.Tokenizer` of this kind."""
    if kind in BYTE_LEVEL:
        return _byte_level(kind)
    return _bert() if kind == "bert" else _unigram() if kind == "unigram" else _spaced(kind)


@functools.cache
def folder(kind: str, tokenizer_class: str = "PreTrainedTokenizerFast") -> Path:
    """A model folder with such a tokenizer, as its publisher would ship it."""
    path = Path(tempfile.mkdtemp(prefix=f"tokenizer-{kind}-"))
    tokenizer = backend(kind)
    tokenizer.save(str(path / "tokenizer.json"))
    config: dict[str, Any] = {"tokenizer_class": tokenizer_class, "clean_up_tokenization_spaces": False}
    if kind in BYTE_LEVEL:
        config.update(eos_token="<|im_end|>", bos_token="<|endoftext|>", chat_template=CHATML)
        if kind == "deepseek":
            config["chat_template"] = (
                "{{ bos_token }}{% for m in messages %}{{ ('<｜User｜>' if m['role'] == 'user' else '<｜Assistant｜>') "
                "+ m['content'] }}{% endfor %}{% if add_generation_prompt %}{{ '<｜Assistant｜>' }}{% endif %}"
            )
    elif kind == "bert":
        config.update(unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]", mask_token="[MASK]")
    else:
        config.update(unk_token="<unk>", bos_token="<s>", eos_token="</s>")
        if kind == "gemma":
            config["chat_template"] = (
                "{{ bos_token }}{% for m in messages %}{{ '<start_of_turn>' + m['role'] + '\\n' + m['content'] | trim "
                "+ '<end_of_turn>\\n' }}{% endfor %}"
                "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
            )
    (path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return path
