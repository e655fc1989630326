"""SentencePiece and tiktoken tokenizers: the same laws as HFTokenizer, against their own libraries."""

import base64
import builtins
import functools
import io
import json
import random
import shutil
import tempfile
from pathlib import Path

import pytest
from support import tokenizer_kinds as kinds

from dslc.core.errors import ModelLoadError, RequestError
from dslc.core.text.detokenize import IncrementalDetokenizer
from dslc.core.text.load import load_tokenizer

sentencepiece = pytest.importorskip("sentencepiece", reason="the extra tokenizer kinds need their libraries")
tiktoken = pytest.importorskip("tiktoken", reason="the extra tokenizer kinds need their libraries")

SENTENCEPIECE = {
    "sp-bpe": {"model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "identity"},
    "sp-llama": {
        "model_type": "bpe",
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "split_digits": True,
    },
    "sp-bpe-symbols": {
        "model_type": "bpe",
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "user_defined_symbols": ["<think>", "</think>", "  ", "\n\n", "\n\n\n"],
    },
    "sp-unigram": {"model_type": "unigram", "normalization_rule_name": "nmt_nfkc"},
    "sp-symbols": {
        "model_type": "unigram",
        "normalization_rule_name": "nmt_nfkc",
        "user_defined_symbols": ["<think>", "①", "①a", "\n\n", "  "],
    },
    "sp-unigram-bytes": {"model_type": "unigram", "byte_fallback": True, "normalization_rule_name": "nfkc"},
}
TIKTOKEN = {"tt-llama3": "tokenizer.model", "tt-qwen": "qwen.tiktoken", "tt-o200k": "own.tiktoken"}
POSSESSIVE = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+"
    r"| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
)
KINDS = [*SENTENCEPIECE, *TIKTOKEN, "tt-possessive"]
PIECES = [
    *("the", " the", "Hello", " world", "don't", "it's", "'", "'r", "e", "I'VE", "HTTPServer", "aB", " ", "  ", "   "),
    *(
        "\n",
        "\n\n",
        " \n",
        "\t",
        "\r\n",
        "\u00a0",
        "\u3000",
        "\x85",
        "1",
        "123",
        "4567",
        " 89",
        "½",
        "²",
        "!",
        "...",
        " -",
    ),
    *("é", "e\u0301", "\u0301", "ß", "日本", "한국", "ᄒ", "ᅡ", "ｶ", "ﾞ", "ไทย", "😀", "👍🏽", "\u200d", "ﬁ", "ﾊﾟ", "①"),
    *("<s>", "</s>", "<th", "ink>", "<think>", "<0x0A>", "<|eot_id|>", "▁", "\0", "\u0378", "→", "a", "b", "/", "//\n"),
]


def ranks_file(path):
    """A trained byte-level BPE written as tiktoken ranks: single bytes first, then merges in their order."""
    from dslc.core.text.hf import byte_alphabet

    alphabet = byte_alphabet()
    model = json.loads(kinds.backend("llama3").to_str())["model"]
    merged = [bytes(alphabet[c] for c in "".join(pair)) for pair in model["merges"]]
    tokens = list(dict.fromkeys([*(bytes([b]) for b in range(256)), *merged]))
    path.write_bytes(b"\n".join(base64.b64encode(token) + b" %d" % i for i, token in enumerate(tokens)) + b"\n")
    return len(tokens)


@functools.cache
def folder(kind):
    path = Path(tempfile.mkdtemp(prefix=kind))
    if kind in SENTENCEPIECE:
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(kinds.CORPUS.splitlines() * 3),
            model_writer=model,
            vocab_size=620 if "byte_fallback" in SENTENCEPIECE[kind] else 300,
            control_symbols=["<|im_start|>"],
            hard_vocab_limit=False,
            minloglevel=2,
            **SENTENCEPIECE[kind],
        )
        (path / "tokenizer.model").write_bytes(model.getvalue())
    elif kind in TIKTOKEN:
        size = ranks_file(path / TIKTOKEN[kind])
        if kind == "tt-o200k":
            added = {str(size): {"content": "<|eot_id|>", "special": True}, str(size + 1): {"content": "<|bos|>"}}
            config = {"pat_str": kinds.PATTERNS["o200k"], "added_tokens_decoder": added, "eos_token": "<|eot_id|>"}
            (path / "tokenizer_config.json").write_text(json.dumps(config))
    else:
        ranks_file(path / "x.tiktoken")
        (path / "tokenizer_config.json").write_text(json.dumps({"pat_str": POSSESSIVE}))
    return path


@functools.cache
def ours(kind):
    return load_tokenizer(folder(kind))


def random_texts(seed, count, most=10):
    rng = random.Random(seed)
    for _ in range(count):
        yield "".join(rng.choice(PIECES) for _ in range(rng.randrange(most + 1)))


@pytest.mark.parametrize("kind", KINDS)
def test_ids_before_a_safe_cut_are_final(kind):
    tokenizer = ours(kind)
    tails = random.Random(2)
    for text in random_texts(3, 500):
        cut = tokenizer.safe_cut(text)
        head = tokenizer.encode(text[:cut])
        for more in ("", *("".join(tails.choices(PIECES, k=tails.randrange(1, 4))) for _ in range(3))):
            whole = tokenizer.encode(text + more)
            assert whole[: len(head)] == head, (text, cut, more)
            if kind in TIKTOKEN or "bpe" in kind or "llama" in kind:  # Unigram: ties of equal scores may fall otherwise
                assert whole[len(head) :] == tokenizer.encode((text + more)[cut:]), (text, cut, more)


@pytest.mark.parametrize("kind", KINDS)
def test_every_split_of_a_text(kind):
    tokenizer = ours(kind)
    for text in (kinds.CORPUS, "a  <think>b\n\n\nc  d", "ｶﾞｶﾞ e\u0301 x\u0301"):
        whole = tokenizer.encode(text)
        for end in range(0, len(text), 3 if text is kinds.CORPUS else 1):
            head = tokenizer.encode(text[: tokenizer.safe_cut(text[:end])])
            assert whole[: len(head)] == head


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_cut_near_their_end(kind):
    for text in ("Answer the question in one short sentence.", "Question: what is 2+2?\nAnswer:", "a b c d"):
        assert len(text) - ours(kind).safe_cut(text) <= len(" sentence.")


@pytest.mark.parametrize("kind", SENTENCEPIECE)
def test_prompts_are_encoded_as_the_library_does(kind):
    processor = sentencepiece.SentencePieceProcessor(model_file=str(folder(kind) / "tokenizer.model"))
    tokenizer = ours(kind)
    for text in random_texts(4, 200):
        if tokenizer.find_special(text) is None:
            assert tokenizer.encode_prompt(text) == processor.encode(text, add_bos=True)
    assert tokenizer.bos_id == processor.bos_id() == 1 and tokenizer.eos_ids == (processor.eos_id(),)
    start = processor.piece_to_id("<|im_start|>")
    assert tokenizer.encode_prompt("<|im_start|>a")[:2] == [1, start]
    assert start not in tokenizer.encode("<|im_start|>a") and tokenizer.token_bytes(start) is None
    assert tokenizer.split_special("x<|im_start|>y</s>") == ["x", start, "y", 2]


def test_llama_prompts_are_as_in_transformers(tmp_path):
    pytest.importorskip("google.protobuf", reason="transformers reads tokenizer.model with protobuf")
    from transformers import AutoTokenizer

    shutil.copytree(folder("sp-llama"), tmp_path / "m")
    config = {"tokenizer_class": "LlamaTokenizer", "legacy": False, "add_bos_token": True, "eos_token": "</s>"}
    config["added_tokens_decoder"] = {"700": {"content": "<|extra|>", "special": True}}
    (tmp_path / "m" / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = load_tokenizer(tmp_path / "m")
    assert tokenizer.special_id("<|extra|>") == 700 and tokenizer.vocab_size == 701
    del config["added_tokens_decoder"]
    (tmp_path / "m" / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = load_tokenizer(tmp_path / "m")
    reference = AutoTokenizer.from_pretrained(tmp_path / "m")
    for text in ["Hello there", "a b  c", "x </s> y", *random_texts(5, 100)]:
        if not text.startswith((" ", "▁")):  # SentencePiece puts its space before these too, transformers does not
            assert tokenizer.encode_prompt(text) == reference(text).input_ids, text


@pytest.mark.parametrize("kind", ["tt-llama3", "tt-qwen", "tt-o200k"])
def test_prompts_of_ranks_are_encoded_as_the_published_tokenizer(kind):
    """Against tokenizers.Tokenizer with the same merges and pattern: another implementation of the same thing."""
    name = {"tt-llama3": "llama3", "tt-qwen": "qwen2", "tt-o200k": "o200k"}[kind]
    other = kinds.backend(name)
    config = json.loads(other.to_str())
    reference_model = json.loads(kinds.backend("llama3").to_str())["model"]
    config.update(
        model={**reference_model, "ignore_merges": False}, added_tokens=[], post_processor=None, normalizer=None
    )
    reference = type(other).from_str(json.dumps(config))
    tokenizer = ours(kind)
    for text in [*random_texts(6, 300), kinds.CORPUS]:
        tokens = [tokenizer.token_bytes(i) for i in tokenizer.encode(text)]
        assert b"".join(tokens) == text.encode()
        lengths = [len(reference.decoder.decode([t]).encode()) for t in reference.encode(text).tokens]
        if all(ord(c) < 128 for c in text):
            assert [len(t) for t in tokens] == lengths


def test_llama3_ranks_get_their_published_special_tokens():
    tokenizer = ours("tt-llama3")
    base = tokenizer.special_id("<|begin_of_text|>")
    assert tokenizer.encode_prompt("a<|eot_id|>")[0] == base == tokenizer.bos_id
    assert tokenizer.encode_prompt("a<|eot_id|>")[-1] == tokenizer.special_id("<|eot_id|>") == base + 9
    assert tokenizer.vocab_size == base + 256
    assert tokenizer.special_id("<|eot_id|>") not in tokenizer.encode("a<|eot_id|>")
    assert ours("tt-qwen").special_id("<|im_end|>") == base + 2
    assert ours("tt-o200k").eos_ids == (base,)


@pytest.mark.parametrize("kind", KINDS)
def test_text_and_ids_and_bytes_agree(kind):
    tokenizer = ours(kind)
    rng = random.Random(7)
    lossy = kind in ("sp-unigram", "sp-unigram-bytes", "sp-symbols")  # their normaliser rewrites characters
    for text in random_texts(8, 200):
        ids = tokenizer.encode(text)
        if not lossy:
            expected = text.replace("▁", " ") if kind in SENTENCEPIECE else text
            assert tokenizer.decode(ids) == expected
        assert b"".join(tokenizer.text_bytes(i, True) for i in ids).decode("utf-8", "replace") == tokenizer.decode(ids)
        ids = [rng.randrange(tokenizer.vocab_size) for _ in range(8)]
        stream = IncrementalDetokenizer(tokenizer)
        assert "".join(stream.add([i]) for i in ids) + stream.finish() == tokenizer.decode(ids)
    assert tokenizer.encode("") == []
    with pytest.raises(RequestError, match="lone surrogate"):
        tokenizer.encode("\ud800")
    assert tokenizer.hash == load_tokenizer(folder(kind)).hash


def test_a_tekken_file(tmp_path):
    """Special tokens come first; only so many ranks count as the vocabulary is long."""
    tokens = [bytes([b]) for b in range(256)] + [b"he", b"ll", b"hell", b"cut off"]
    vocab = [{"rank": i, "token_bytes": base64.b64encode(t).decode()} for i, t in enumerate(tokens)]
    settings = {"pattern": r"\S+|\s+", "default_vocab_size": 24 + 259, "default_num_special_tokens": 24}
    path = tmp_path / "tekken.json"
    path.write_text(json.dumps({"config": settings, "vocab": vocab}))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.vocab_size == 24 + 259
    assert tokenizer.encode_prompt("[INST]hello") == [1, 3, 24 + 258, 24 + ord("o")]
    assert tokenizer.special_id("<SPECIAL_20>") == 20 and tokenizer.eos_ids == (2,)
    assert tokenizer.safe_cut("hello there") == len("hello ")
    listed = [{"rank": i, "token_str": text} for i, text in enumerate(["<unk>", "<s>", "</s>", "[THINK]"])]
    path.write_text(json.dumps({"config": settings, "vocab": vocab, "special_tokens": listed}))
    assert load_tokenizer(tmp_path).special_id("[THINK]") == 3
    path.write_text(json.dumps({"config": {}}))
    with pytest.raises(ModelLoadError, match=r"tekken\.json: is no tekken vocabulary"):
        load_tokenizer(tmp_path)


def test_hashes_differ():
    assert len({ours(kind).hash for kind in KINDS}) == len(KINDS)


@pytest.mark.parametrize("kind, package", [("sp-bpe", "sentencepiece"), ("tt-qwen", "tiktoken")])
def test_a_missing_package_is_named(kind, package, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == package:
            raise ImportError(name)
        return real(name, *args, **kwargs)

    folder(kind)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ModelLoadError, match=f"pip install {package}"):
        load_tokenizer(folder(kind))


def test_broken_files_are_named(tmp_path):
    (tmp_path / "odd.tiktoken").write_bytes(b"aGk= 0\nnot a line\n")
    with pytest.raises(ModelLoadError, match=r"odd\.tiktoken: line 2 is not"):
        load_tokenizer(tmp_path)
    (tmp_path / "odd.tiktoken").write_bytes(b"aGk= 0\n")
    with pytest.raises(ModelLoadError, match=r'set "pat_str" in tokenizer_config\.json'):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"\n\x05abc")
    with pytest.raises(ModelLoadError, match="no SentencePiece model"):
        load_tokenizer(tmp_path)
