"""The model that ships with the package: its text, its tokenizer, and what it answers."""

import json
from itertools import pairwise
from random import Random

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from dslc.runtime.builtin import model_path
from dslc.runtime.builtin.corpus import END, FAMILIES, IM_END, LONG, draw, is_held_out, sample_tickets
from dslc.runtime.builtin.evaluate import held_out
from dslc.runtime.builtin.train import PROMPT_WEIGHT, Packer, Phase, encode

ALL = (*FAMILIES, LONG)


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(model_path())


@pytest.fixture(scope="module")
def raw_tokenizer():
    return Tokenizer.from_file(str(model_path() / "tokenizer.json"))


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(model_path(), dtype=torch.float32)


@pytest.mark.parametrize("family", ALL, ids=lambda family: family.name)
def test_corpus_follows_from_the_seed(family):
    first = [draw(family, Random("a"), held_out=False) for _ in range(5)]
    again = [draw(family, Random("a"), held_out=False) for _ in range(5)]
    other = [draw(family, Random(f"b{i}"), held_out=False) for i in range(5)]
    assert first == again
    assert first != other


@pytest.mark.parametrize("family", ALL, ids=lambda family: family.name)
def test_held_out_documents_are_never_trained_on(family):
    rng = Random("split")
    kept_back = {document.key for document in held_out(family.name, 10)}
    trained = [draw(family, rng, held_out=False) for _ in range(100)]
    assert kept_back
    assert all(is_held_out(key) for key in kept_back)
    assert not any(document.key in kept_back for document in trained)


def test_tickets_of_the_demo_are_held_out_and_labelled():
    tickets = sample_tickets(32, seed=0)
    assert len({ticket.text for ticket in tickets}) == 32
    assert all(is_held_out(ticket.key) and ticket.follow_up for ticket in tickets)
    assert {ticket.label for ticket in tickets} == {"bug", "billing", "other"}
    for ticket in tickets:
        if ticket.label == "bug":
            assert list(json.loads(ticket.follow_up_answer)) == ["summary", "component", "severity"]


@pytest.mark.parametrize("text", [
    "", " ", "\n", "a  b\n\n c\t", "x=1234567",
    "Balanced Diet\nBalanced", '{"name": "Zanenwik", "population": 120}',
    "naïve 東京 🙂", f"a{END}b", "it's $12.50",
])  # fmt: skip
def test_tokenizer_round_trip(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_tokenizer_splits_a_word_alike_with_and_without_its_space(raw_tokenizer):
    rng = Random(0)
    for _ in range(100):
        word = "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.randint(1, 9))).capitalize()
        bare = raw_tokenizer.encode(word).tokens
        spaced = raw_tokenizer.encode(f" {word}").tokens
        assert "".join(spaced)[1:] == "".join(bare)
        assert spaced[-len(bare) + 1 :] == bare[1:] or len(bare) == 1


def test_digits_stand_alone(raw_tokenizer):
    assert raw_tokenizer.encode("10437").tokens == list("10437")


MESSAGES = [
    {"role": "system", "content": " You sort support tickets.\n"},
    {"role": "user", "content": "The app crashes on start  "},
    {"role": "assistant", "content": "bug"},
    {"role": "user", "content": ""},
    {"role": "assistant", "content": "\n{'a': 1}"},
]


def test_chat_template_passes(tokenizer):
    counts = range(1, len(MESSAGES) + 1)
    renders = ["", *(tokenizer.apply_chat_template(MESSAGES[:k], tokenize=False) for k in counts)]
    for (shorter, longer), message in zip(pairwise(renders), MESSAGES, strict=True):
        assert longer == f"{shorter}<|im_start|>{message['role']}\n{message['content']}<|im_end|>\n"
    asked = tokenizer.apply_chat_template(MESSAGES[:2], tokenize=False, add_generation_prompt=True)
    assert asked == renders[2] + "<|im_start|>assistant\n"
    assert renders[3].startswith(asked)


def test_ids_of_the_ends(tokenizer, model):
    ends = tokenizer.convert_tokens_to_ids([IM_END, END])
    assert model.generation_config.eos_token_id == ends
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id == ends[1]
    assert tokenizer.bos_token is None
    assert model.config.vocab_size == len(tokenizer)
    assert sum(file.stat().st_size for file in model_path().iterdir()) < 30e6


def test_training_text_is_encoded_as_the_program_will_meet_it(raw_tokenizer):
    row = encode(raw_tokenizer, draw(FAMILIES[0], Random(0), held_out=False))
    assert row.ids[-1] == raw_tokenizer.token_to_id(END)
    assert len(row.ids) == len(row.weights)
    assert set(row.weights) == {1.0, PROMPT_WEIGHT}
    ids, weights = next(Packer(raw_tokenizer, Random(0)).batches(Phase(1, 3, 64, (1.0, 1.0), {"arithmetic": 1.0})))
    assert ids.shape == weights.shape == (3, 65)


def reply(model, tokenizer, prompt, max_new_tokens=48):
    ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
    out = model.generate(**ids, max_new_tokens=max_new_tokens, do_sample=False)
    return tokenizer.decode(out[0, ids.input_ids.shape[1] :], skip_special_tokens=True)


def chat(model, tokenizer, *turns, system=None):
    messages = [{"role": "system", "content": system}] * (system is not None)
    for role, content in zip(("user", "assistant") * len(turns), turns, strict=False):
        messages.append({"role": role, "content": content})
    return reply(model, tokenizer, tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


@pytest.mark.parametrize("turns, answer", [
    (["Who are you?"], "I am dslc-tiny, a very small built-in model. I know little, but I am always here."),
    (["What is the capital of France?"], "The capital of France is Paris."),
    (["My name is Emma.", "Nice to meet you, Emma!", "What is my name?"], "Your name is Emma."),
])  # fmt: skip
def test_chat(model, tokenizer, turns, answer):
    assert chat(model, tokenizer, *turns) == answer


@pytest.mark.parametrize("ticket, label, question, answer", [
    ("The app crashes on start", "bug", "Summarise it as JSON.",
     '{"summary": "App crashes on start", "component": "app", "severity": "high"}'),
    ("I was charged $12.50 twice.", "billing", "Which amount is it about?", "$12.50"),
    ("How do I change my password?", "other", "Answer the customer in one sentence.",
     "You can change your password in the settings."),
])  # fmt: skip
def test_ticket_sorting(model, tokenizer, ticket, label, question, answer):
    system = "You sort support tickets."
    assert chat(model, tokenizer, ticket, system=system) == label
    assert chat(model, tokenizer, ticket, label, question, system=system) == answer


def test_few_shot(model, tokenizer):
    shots = "Q: What is the capital of Germany?\nA: Berlin\nQ: What is the capital of Spain?\nA: Madrid\n"
    assert reply(model, tokenizer, f"{shots}Q: What is the capital of Italy?\nA:", 4).split("\n")[0] == " Rome"
