"""Tokenizers as published, where the packages that carry their files are installed (`pip install dslc[bench]`)."""

import functools
import importlib.util
import random
import shutil
import tempfile
from pathlib import Path

import pytest
from support import tokenizer_kinds as kinds

from dslc.core.text.load import load_tokenizer

FILES = {
    "deepseek-v3": ("litellm", "litellm_core_utils/tokenizers/deepseek_tokenizer.json"),
    "claude-2": ("litellm", "litellm_core_utils/tokenizers/anthropic_tokenizer.json"),
    "mistral-v1": ("mistral_common", "data/tokenizer.model.v1"),
    "tekken": ("mistral_common", "data/tekken_240911.json"),
    "mistral-v3": ("mistral_common", "data/mistral_instruct_tokenizer_240323.model.v3"),
}


@functools.cache
def published(name):
    package, file = FILES[name]
    spec = importlib.util.find_spec(package)
    path = Path(spec.submodule_search_locations[0]) / file if spec else None
    if path is None or not path.is_file():
        pytest.skip(f"{package} is not installed, or has no {file}")
    folder = Path(tempfile.mkdtemp(prefix=name))
    name = "tekken.json" if name == "tekken" else "tokenizer.json" if path.suffix == ".json" else "tokenizer.model"
    shutil.copy(path, folder / name)
    return folder, load_tokenizer(folder)


def random_texts(seed, count):
    words = [
        *kinds.CORPUS.split(" "),
        " ",
        "  ",
        "\n",
        "\n\n",
        "\t",
        "\r\n",
        "'",
        "1234",
        "日本",
        "é",
        "e\u0301",
        "😀",
        "<",
        "▁",
    ]
    rng = random.Random(seed)
    for _ in range(count):
        yield "".join(rng.choice(words) + rng.choice(["", " "]) for _ in range(rng.randrange(10)))


@pytest.mark.parametrize("name", FILES)
def test_ids_before_a_safe_cut_are_final(name):
    _, tokenizer = published(name)
    tails = random.Random(1)
    left = 0
    for text in random_texts(2, 500):
        cut = tokenizer.safe_cut(text)
        left += len(text) - cut
        head = tokenizer.encode(text[:cut])
        for more in ("", tails.choice(["s", " ", "\n", "1", "re", "\u0301"]), *random_texts(tails.random(), 1)):
            whole = tokenizer.encode(text + more)
            assert whole == head + tokenizer.encode((text + more)[cut:]), (text, cut, more)
    assert left / 500 < 8


@pytest.mark.parametrize("name", ["deepseek-v3", "claude-2"])
def test_prompts_and_decoding_are_as_in_transformers(name):
    from transformers import PreTrainedTokenizerFast

    folder, tokenizer = published(name)
    reference = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    rng = random.Random(3)
    for text in [*random_texts(4, 200), "<｜User｜>hi<｜Assistant｜><EOT>"]:
        assert tokenizer.encode_prompt(text) == reference(text).input_ids
        ids = [rng.randrange(tokenizer.vocab_size) for _ in range(10)]
        assert tokenizer.decode(ids) == reference.decode(ids, skip_special_tokens=True)


def test_tekken_prompts_are_as_in_mistral_common():
    folder, tokenizer = published("tekken")
    tekken = pytest.importorskip("mistral_common.tokens.tokenizers.tekken", reason="Mistral's own reader of its files")
    reference = tekken.Tekkenizer.from_file(folder / "tekken.json")
    for text in random_texts(6, 300):
        assert tokenizer.encode_prompt(text) == reference.encode(text, bos=True, eos=False)
        assert tokenizer.encode(text) == reference.encode(text, bos=False, eos=False)
    assert tokenizer.vocab_size == reference.n_words
    assert (tokenizer.bos_id, tokenizer.eos_ids) == (reference.bos_id, (reference.eos_id,))
    assert tokenizer.special_id("[INST]") == reference.get_special_token("[INST]")
    assert tokenizer.special_id("<SPECIAL_999>") == reference.get_special_token("<SPECIAL_999>")
    assert tokenizer.encode_prompt("[INST]a") == [1, 3, *tokenizer.encode("a")]


@pytest.mark.parametrize("name", ["deepseek-v3", "tekken", "mistral-v1", "mistral-v3"])
def test_text_comes_back(name):
    _, tokenizer = published(name)
    for text in random_texts(5, 300):
        expected = text.replace("▁", " ") if name.startswith("mistral") else text
        assert tokenizer.decode(tokenizer.encode(text)) == expected
