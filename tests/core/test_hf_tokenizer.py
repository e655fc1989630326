"""HFTokenizer against transformers' AutoTokenizer and against the laws of `core.text.tokenizer.Tokenizer`."""

import functools
import json
import os
import random
import shutil
import subprocess
import sys

import pytest
from support import tokenizer_kinds as kinds

from dslc.core.errors import ModelLoadError, RequestError
from dslc.core.text.load import load_tokenizer

PIECES = [
    *("the", " the", "Hello", " world", "don't", "it's", "we'll", "'", "'r", "e", "I'VE", "HTTPServer", "aB", "ABCd"),
    *(" ", "  ", "   ", "\n", "\n\n", " \n", "\n ", "\t", "\r\n", " \t ", "\u00a0", "\u3000", "\x0b", "\x1c", "\x85"),
    *("1", "12", "123", "4567", " 89", "3.14", "½", "²", "٣", "!", "?!", "...", " -", "(", '"', "//", "#/\n", ",", "_"),
    *(
        "é",
        "e\u0301",
        "\u0301",
        "ñ",
        "ß",
        "日本",
        "語。",
        "한국",
        "ᄒ",
        "ᅡ",
        "ᆫ",
        "हि",
        "ไทย",
        "😀",
        "👍🏽",
        "\u200d",
        "ﬁ",
    ),
    *("<", "<|", "<|im_start|>", "<|im_", "start|>", "<s>", "<th", "<think>", "ink>", "</think>", "<0x0A>", "[CLS]"),
    *("▁", "▁▁", "Ġ", "İ", "Ω", "\u212b", "ſ", "'ſ", "\0", "\ufeff", "\U000e0100", "\u0378", "≤", "→", "€5", "a", "b"),
]


@functools.cache
def ours(kind):
    return load_tokenizer(kinds.folder(kind))


@functools.cache
def theirs(kind):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(kinds.folder(kind))


def random_texts(seed, count, most=12):
    rng = random.Random(seed)
    for _ in range(count):
        yield "".join(rng.choice(PIECES) for _ in range(rng.randrange(most + 1)))


@pytest.mark.parametrize("kind", kinds.KINDS)
def test_encode_prompt_is_transformers_call(kind):
    for text in [*random_texts(1, 200), kinds.CORPUS]:
        assert ours(kind).encode_prompt(text) == theirs(kind)(text).input_ids, text


@pytest.mark.parametrize("kind", kinds.KINDS)
def test_ids_before_a_safe_cut_are_final(kind):
    tokenizer = ours(kind)
    tails = random.Random(2)
    for text in random_texts(3, 500):
        cut = tokenizer.safe_cut(text)
        head = tokenizer.encode(text[:cut])
        for more in ("", *("".join(tails.choices(PIECES, k=tails.randrange(1, 4))) for _ in range(3))):
            whole = tokenizer.encode(text + more)
            assert whole[: len(head)] == head, (text, cut, more)
            assert whole[len(head) :] == tokenizer.encode((text + more)[cut:]), (text, cut, more)


@pytest.mark.parametrize("kind", kinds.KINDS)
def test_safe_cuts_of_long_texts(kind):
    """Long enough for the window at the end to matter; the cut is near the end and still safe."""
    tokenizer = ours(kind)
    rng = random.Random(4)
    for i in range(12):
        text = (
            "".join(rng.choice((*PIECES, *kinds.CORPUS.split(" "), " ")) for _ in range(400)) + " and then some words"
        )
        more = rng.choice(PIECES)
        cut = tokenizer.safe_cut(text)
        head = tokenizer.encode(text[:cut])
        assert tokenizer.encode(text + more)[: len(head)] == head, (i, cut)
        assert cut >= len(text) - len(" words") - 1


HAZARDS = [
    *("foo <think>bar</think> <tool_call>", "a<start_of_turn>user\n\n\n\n\nb<end_of_turn>", "x" + " " * 30 + "y  z"),
    *("don't we'll I'VE they'Re x''s 's", "1234567 12345678 1,234.5", "日本ABCd 日本ABC", "a \t b\n \n  c\r\n\r\n d"),
    *(
        "e\u0301\u0301 ᄒ\u1161ᆫ \u212b\u0323 ﬁ\u0301",
        "🇫🇷🇫🇷👨‍👩‍👧‍👦👍🏽",
        "!!!\n\n//#/\n/ ?",
        "\U0001f9ff\U0001f9ff\u0378\u0378 x",
    ),
]


@pytest.mark.parametrize("kind", kinds.KINDS)
def test_every_split_of_hard_texts(kind):
    tokenizer = ours(kind)
    for text in (*HAZARDS, kinds.CORPUS):
        whole = tokenizer.encode(text)
        for end in range(0, len(text), 3 if text is kinds.CORPUS else 1):
            cut = tokenizer.safe_cut(text[:end])
            head = tokenizer.encode(text[:cut])
            assert cut <= end and whole[: len(head)] == head, (text[max(0, end - 20) : end], cut)


@pytest.mark.parametrize("kind", kinds.KINDS)
@pytest.mark.parametrize("run", ["7", "a", "日", " ", "\n", "!", "A\n ", "é", "12 "])
def test_long_runs_are_cut_as_from_their_start(kind, run):
    """Groups of three digits, for one, count from the start of the run, however long it is."""
    tokenizer = ours(kind)
    for count in range(299, 305):
        text = "start of it " + run * count
        for more in ("7", " x", "\n"):
            cut = tokenizer.safe_cut(text)
            head = tokenizer.encode(text[:cut])
            assert tokenizer.encode(text + more)[: len(head)] == head


@pytest.mark.parametrize("kind", kinds.KINDS)
@pytest.mark.parametrize(
    "text", ["Answer the question in one short sentence.", "Question: what is 2+2?\nAnswer:", "a b c d"]
)
def test_prompts_cut_near_their_end(kind, text):
    assert len(text) - ours(kind).safe_cut(text) <= len(" sentence.")


def added_tokens(kind):
    return theirs(kind)._tokenizer.get_added_tokens_decoder().values()


@pytest.mark.parametrize("kind", kinds.KINDS)
def test_special_tokens_in_plain_text_stay_text(kind):
    tokenizer = ours(kind)
    specials = {tokenizer.special_id(t.content) for t in added_tokens(kind) if tokenizer.find_special(t.content)}
    unknown = {tokenizer.special_id(t) for t in ("<unk>", "[UNK]") if tokenizer.find_special(t)}
    assert specials
    texts = [token.content for token in added_tokens(kind)]
    for text in [*texts, *(f"a{text} b" for text in texts), *random_texts(5, 200)]:
        assert not specials - unknown & set(tokenizer.encode(text)), text


@pytest.mark.parametrize("kind", [k for k in kinds.KINDS if k not in ("bert", "unigram")])
def test_text_comes_back_from_its_ids(kind):
    tokenizer = ours(kind)
    normalise = theirs(kind)._tokenizer.normalizer
    for text in [*random_texts(6, 200), kinds.CORPUS]:
        if kind in ("qwen2", "neox"):
            text = normalise.normalize_str(text)
        elif kind in kinds.SPACED:
            text = text.replace("▁", " ")
        assert tokenizer.decode(tokenizer.encode(text)) == text
        assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=False) == text


@pytest.mark.parametrize("kind", kinds.BYTE_LEVEL)
def test_decode_is_transformers_decode_for_any_ids(kind):
    rng = random.Random(7)
    for _ in range(200):
        ids = [rng.randrange(ours(kind).vocab_size) for _ in range(rng.randrange(20))]
        for skip in (True, False):
            text = ours(kind).decode(ids, skip_special_tokens=skip)
            assert text == theirs(kind).decode(ids, skip_special_tokens=skip)
            assert text == b"".join(ours(kind).text_bytes(i, skip) for i in ids).decode("utf-8", "replace")


@pytest.mark.parametrize("kind", ["llama2", "mistral", "metaspace", "gemma"])
def test_byte_fallback_tokens_are_bytes(kind):
    tokenizer = ours(kind)
    assert tokenizer.token_bytes(theirs(kind).convert_tokens_to_ids("<0x0A>")) == b"\n"
    ids = tokenizer.encode("\U0001f9ff")
    assert [tokenizer.token_bytes(i) for i in ids] == [bytes([b]) for b in "\U0001f9ff".encode()]


@pytest.mark.parametrize("kind", kinds.SPACED)
def test_continuations_get_no_dummy_space(kind):
    tokenizer = ours(kind)
    for text in ("Hello", "the", "the the", " the"):
        assert b"".join(tokenizer.token_bytes(i) for i in tokenizer.encode(text)) == text.encode()


def test_special_tokens_are_found_and_split():
    tokenizer = ours("qwen2")
    start, end = tokenizer.special_id("<|im_start|>"), tokenizer.special_id("<|im_end|>")
    assert tokenizer.find_special("x<|im_end|>y<|im_start|>") == "<|im_end|>"
    assert tokenizer.find_special("nothing <|im") is None
    assert tokenizer.split_special("<|im_start|>user\nhi<|im_end|>") == [start, "user\nhi", end]
    assert tokenizer.split_special("") == []
    with pytest.raises(RequestError, match="no special token '<nope>'"):
        tokenizer.special_id("<nope>")
    text = "<|im_start|>user\nhi<|im_end|>\n"
    ids = [
        i
        for part in tokenizer.split_special(text)
        for i in ([part] if isinstance(part, int) else tokenizer.encode(part))
    ]
    assert ids == theirs("qwen2")(text).input_ids


def test_added_tokens_that_the_template_writes_are_not_spelt_by_text():
    """DeepSeek's role marks are not flagged special in its file; user text must not open a role all the same. Where the
    model writes one it shows, as in transformers."""
    tokenizer = ours("deepseek")
    mark = tokenizer.special_id("<｜Assistant｜>")
    assert mark not in tokenizer.encode("<｜Assistant｜>") and mark in tokenizer.encode_prompt("<｜Assistant｜>")
    assert tokenizer.decode([mark]) == "<｜Assistant｜>" and tokenizer.token_bytes(mark) == "<｜Assistant｜>".encode()
    think = ours("qwen2").encode("<think>")  # its template does not write it: a word like others
    assert len(think) == 1 and ours("qwen2").decode(think) == "<think>"


def test_lone_surrogates_are_refused_and_nul_is_a_character():
    for kind in ("gpt2", "llama2"):
        tokenizer = ours(kind)
        for call in (tokenizer.encode, tokenizer.encode_prompt, tokenizer.safe_cut, tokenizer.split_special):
            with pytest.raises(RequestError, match=r"lone surrogate '\\ud83d' at position 2"):
                call("ab\ud83dcd")
        assert tokenizer.decode(tokenizer.encode("a\0b")) == "a\0b"


def test_the_hash_names_the_encoding():
    assert ours("gpt2").hash == load_tokenizer(kinds.folder("gpt2")).hash
    assert len({ours(kind).hash for kind in kinds.KINDS}) == len(kinds.KINDS)
    code = "import sys; from dslc.core.text.load import load_tokenizer as f; print([f(p).hash for p in sys.argv[1:]])"
    some = ("bert", "llama3", "qwen2")
    command = [sys.executable, "-c", code, *(str(kinds.folder(kind)) for kind in some)]
    for _ in range(2):  # in other processes, where hash tables are in other orders
        assert subprocess.check_output(command, text=True).strip() == str([ours(kind).hash for kind in some])


def test_vocabulary_agrees_with_token_bytes():
    tokenizer = ours("llama2")
    vocabulary = tokenizer.vocabulary
    assert vocabulary is tokenizer.vocabulary
    assert vocabulary.size == tokenizer.vocab_size == len(theirs("llama2"))
    assert vocabulary.eos_ids == tokenizer.eos_ids == (2,)
    assert tokenizer.token_bytes(tokenizer.vocab_size) is None and tokenizer.token_bytes(-1) is None
    with pytest.raises(RequestError, match="not below the vocabulary size"):
        tokenizer.decode([tokenizer.vocab_size])


@pytest.mark.parametrize("kind", ["llama2", "mistral", "metaspace"])
@pytest.mark.parametrize("model_type", [None, "llama", "mistral", "phi3"])
@pytest.mark.parametrize("options", [{}, {"legacy": False}, {"legacy": True}, {"add_prefix_space": False}])
def test_the_llama_class_is_read_as_transformers_reads_it(tmp_path, kind, model_type, options):
    """It takes only the vocabulary from tokenizer.json, unless the model is of one of several other families."""
    from transformers import AutoTokenizer

    shutil.copytree(kinds.folder(kind, "LlamaTokenizerFast"), tmp_path / "m")
    config = json.loads((tmp_path / "m" / "tokenizer_config.json").read_text()) | options
    (tmp_path / "m" / "tokenizer_config.json").write_text(json.dumps(config))
    if model_type is not None:
        (tmp_path / "m" / "config.json").write_text(json.dumps({"model_type": model_type}))
    tokenizer, reference = load_tokenizer(tmp_path / "m"), AutoTokenizer.from_pretrained(tmp_path / "m")
    for text in ["Hello", " Hello", "a <s> b</s>c", "", "\n", *random_texts(8, 40)]:
        assert tokenizer.encode_prompt(text) == reference(text).input_ids, text
    assert tokenizer.decode(tokenizer.encode("Hello  there")) == "Hello  there"


@pytest.mark.parametrize(
    "kind, name",
    [("gpt2", "GPT2Tokenizer"), ("qwen2", "Qwen2Tokenizer"), ("gemma", "GemmaTokenizer"), ("bert", "BertTokenizer")],
)
def test_other_published_classes(kind, name):
    from transformers import AutoTokenizer

    folder = kinds.folder(kind, name)
    tokenizer, reference = load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    for text in random_texts(9, 150):
        assert tokenizer.encode_prompt(text) == reference(text).input_ids, text


def test_special_tokens_from_the_files_beside_tokenizer_json(tmp_path):
    """tokenizer_config.json adds tokens; an old special_tokens_map.json counts where the former lists none."""
    from transformers import AutoTokenizer

    shutil.copytree(kinds.folder("gpt2"), tmp_path / "m")
    path = tmp_path / "m" / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config["additional_special_tokens"] = ["<|tool|>"]
    path.write_text(json.dumps(config))
    pad = {"content": "<pad>", "lstrip": True, "rstrip": False, "normalized": False, "single_word": False}
    special_map = {"eos_token": "<|endoftext|>", "pad_token": pad}
    (tmp_path / "m" / "special_tokens_map.json").write_text(json.dumps(special_map))
    (tmp_path / "m" / "generation_config.json").write_text(json.dumps({"eos_token_id": [700, 5]}))
    tokenizer, reference = load_tokenizer(tmp_path / "m"), AutoTokenizer.from_pretrained(tmp_path / "m")
    text = "a <|tool|> b  <pad> c<|im_end|>"
    assert tokenizer.encode_prompt(text) == reference(text).input_ids
    assert tokenizer.eos_ids == (reference.eos_token_id, 5) == (700, 5)
    assert tokenizer.vocab_size == len(reference)
    ids = [i for p in tokenizer.split_special(text) for i in ([p] if isinstance(p, int) else tokenizer.encode(p))]
    assert ids == reference(text).input_ids


def test_what_cannot_be_loaded_is_named(tmp_path):
    with pytest.raises(ModelLoadError, match="no such folder"):
        load_tokenizer(tmp_path / "nothing" / "here")
    with pytest.raises(ModelLoadError, match="holds no tokenizer"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelLoadError, match=r"tokenizer\.json: cannot be read"):
        load_tokenizer(tmp_path)
    shutil.copy(kinds.folder("gpt2") / "tokenizer.json", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[")
    with pytest.raises(ModelLoadError, match=r"tokenizer_config\.json: is not valid JSON"):
        load_tokenizer(tmp_path)


def test_a_model_by_its_hub_name(tmp_path):
    """From the local cache of huggingface_hub, at a revision; what is not there is named. No network is used."""
    cached = tmp_path / "models--someone--tiny"
    commit = "0" * 40
    shutil.copytree(kinds.folder("gpt2"), cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
    code = (
        "from dslc.core.text.load import load_tokenizer as f\n"
        "from dslc.core.errors import ModelLoadError\n"
        f"print(f('someone/tiny').hash, f('someone/tiny', revision='{commit}').hash)\n"
        "for name in ('someone/other', 'not a name!'):\n"
        "    try: f(name)\n"
        "    except ModelLoadError as error: print(error)\n"
    )
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    lines = subprocess.check_output([sys.executable, "-c", code], text=True, env=environment).splitlines()
    assert lines[0].split() == [ours("gpt2").hash] * 2
    assert "someone/other: is neither a folder nor a model" in "\n".join(lines)
    assert "not a name!: is neither a folder nor a model" in "\n".join(lines)
