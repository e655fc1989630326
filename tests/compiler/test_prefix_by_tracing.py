"""`program.trace()`, and the prefix that it gives: the longest constant text before the first argument or gen."""

import pytest

import dslc
from dslc.cli_programs import load_tokenizer_of
from dslc.compiler.ir import Arg, walk

RULES = "Answer in one word.\n"


@dslc.function
def plain(s, q):
    s += RULES + "Q: What is the capital of France?\nA: Paris\n"
    s += "Q: "
    s += q
    s += dslc.gen("a", max_tokens=4)


@dslc.function
def at_once(s, q):
    s += q
    s += "\nAnswer: "
    s += dslc.gen("a", max_tokens=4)


@dslc.function
def generated_first(s, q):
    s += "Once upon a time"
    s += dslc.gen("a", max_tokens=4)
    s += " and then "
    s += dslc.gen("b", max_tokens=4)


@dslc.function
def either(s, q):
    s += "Begin. "
    if q == "long":
        s += "Write much."
    else:
        s += "Write little."
    s += dslc.gen("a", max_tokens=4)


@dslc.function
def turns(s, q):
    s += dslc.system("You are brief.")
    s += dslc.user(q)
    s += dslc.assistant(dslc.gen("a", max_tokens=4))


CONSTANT = {
    plain: RULES + "Q: What is the capital of France?\nA: Paris\nQ: ",
    at_once: "",
    generated_first: "Once upon a time",
    either: "Begin. Write ",
    turns: "<|im_start|>system\nYou are brief.<|im_end|>\n<|im_start|>user\n",
}
BOTH = {either: ("much.", "little."), plain: ("Which?", " 7", "\n\n"), turns: ("Hi", "\n"), at_once: ("Hi", "x")}


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer_of(None)


@pytest.mark.parametrize("program", CONSTANT, ids=lambda program: program.__name__)
def test_the_prefix_is_the_constant_text_before_the_first_value(program, tokenizer):
    prefix = program.plan(tokenizer).static_prefix
    text = tokenizer.decode(prefix, skip_special_tokens=False)
    constant = CONSTANT[program]
    assert constant.startswith(text)
    # What is left out are characters that a later text could still join to a token: no more than the last of them.
    assert len(constant) - len(text) <= (len(" little.") if program is either else len(" time"))
    if not constant:
        assert prefix == ()
    elif program is not either:
        assert len(text) >= tokenizer.safe_cut(constant) or program is turns
    for tail in BOTH.get(program, ()):  # and in every run the prompt does begin with it
        ids = tokenizer.encode_prompt(constant + tail)
        assert tuple(ids[: len(prefix)]) == prefix


def test_partial_arguments_are_constants_of_the_trace(tokenizer):
    program = at_once.trace(q="What now?")
    assert not any(isinstance(op, Arg) for op in walk(program.body))
    bound = at_once.bind(q="What now?").plan(tokenizer)
    assert tokenizer.decode(bound.static_prefix).startswith("What now?\nAnswer:")
    assert [op.param for op in walk(at_once.trace().body) if isinstance(op, Arg)] == ["q"]


def test_a_program_without_a_prefix_caches_nothing_and_raises_nothing():
    class Unreachable:
        capabilities = dslc.core.backend.Capabilities("none", token_ids=True)
        tokenizer = load_tokenizer_of(None)

        def submit(self, requests, sink):
            raise AssertionError("nothing is to be computed")

    assert at_once.cache(Unreachable()) == 0
