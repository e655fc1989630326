"""Where template text meets a choice or a constrained answer: plain text is given back, template text never is."""

from dataclasses import replace

import pytest
from support.scripted import CHATML, ScriptedBackend, ScriptedTokenizer

import dslc

PLAIN_TEMPLATE = (  # no special tokens: template text and content stand in one run
    "{% for message in messages %}{{ '[' + message['role'] + ']\n' + message['content'] + '[end]\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '[assistant]\n' }}{% endif %}"
)
WORDS = ("\n\n", "\nyes", "\n\nno", "I say", " yes", "[end]\n[", "ab", "abc", "abcd", "bc", "bcd")


def answers(prompt):
    return "okabX" if prompt.endswith("\n") else "d"


def requests_of(program, template, compiled, **arguments):
    """The requests of a run, and the text of the state."""
    backend = ScriptedBackend(answers, tokenizer=ScriptedTokenizer(WORDS, chat_template=template))
    state = program.run(backend=backend, compiled=compiled, **arguments)
    return backend, state


def ids_of(request, tokenizer):
    return [id for segment in request.segments for id in (segment.ids or tokenizer.encode(segment.text))]


@dslc.function
def right_after_the_template(s):
    s += dslc.user("Well?")
    s += dslc.assistant(dslc.select("x", ["yes", "\nno"]))


@dslc.function
def after_plain_text(s, lead):
    s += dslc.user("Well?")
    s += dslc.assistant(lead + dslc.select("x", ["yes", "c", "cd"]))


@dslc.function
def after_a_cut_generation(s):
    s += dslc.user("Well?")
    s += dslc.assistant(dslc.gen("a", stop="X"))
    s += dslc.user("Sure?")
    s += dslc.assistant(dslc.select("x", ["yes", "\nno"]))


@dslc.function
def after_branches(s):
    """What a branch appends is appended again at the join, template text as such."""
    s += dslc.user("Well?")
    forks = s.fork(2)
    for branch in forks:
        branch += dslc.gen("a", stop="X")
        branch += dslc.special("so:\n")
    forks.join("concate_and_append")
    s += dslc.select("x", ["yes", "\nno"])


@pytest.mark.parametrize("template", [CHATML, PLAIN_TEMPLATE], ids=["chatml", "plain"])
@pytest.mark.parametrize("compiled", [True, False])
def test_template_text_is_fixed_before_a_choice(template, compiled):
    backend, _ = requests_of(right_after_the_template, template, compiled)
    tokenizer, request = backend.tokenizer, backend.requests[-1]
    rendered = tokenizer.chat_template.render([{"role": "user", "content": "Well?"}], add_generation_prompt=True)
    assert ids_of(request, tokenizer) == tokenizer.encode_prompt(rendered)
    assert request.score.sequences == tuple(tuple(tokenizer.encode(choice)) for choice in ("yes", "\nno"))


@pytest.mark.parametrize("template", [CHATML, PLAIN_TEMPLATE], ids=["chatml", "plain"])
@pytest.mark.parametrize("lead", ["ab", "I say", "\n", "so: ab"])
@pytest.mark.parametrize("compiled", [True, False])
def test_plain_text_after_it_is_given_back_up_to_it(template, lead, compiled):
    """What the choices are scored with is plain text: fixed ids + each sequence spell prompt and choice."""
    backend, _ = requests_of(after_plain_text, template, compiled, lead=lead)
    tokenizer, request = backend.tokenizer, backend.requests[-1]
    rendered = tokenizer.chat_template.render([{"role": "user", "content": "Well?"}], add_generation_prompt=True)
    fixed = tokenizer.decode(ids_of(request, tokenizer), skip_special_tokens=False)
    assert fixed.startswith(rendered) and (rendered + lead).startswith(fixed)
    tail = (rendered + lead)[len(fixed) :]
    assert request.score.sequences == tuple(tuple(tokenizer.encode(tail + choice)) for choice in ("yes", "c", "cd"))
    if lead.endswith("ab"):
        assert tail == "ab"  # "abc" may follow


@pytest.mark.parametrize("template", [CHATML, PLAIN_TEMPLATE], ids=["chatml", "plain"])
@pytest.mark.parametrize("program", [after_a_cut_generation, after_branches])
def test_compiled_and_interpreted_agree_on_the_seam(template, program):
    (one, first), (other, second) = (requests_of(program, template, compiled) for compiled in (True, False))
    tokenizer = one.tokenizer
    assert [ids_of(r, tokenizer) for r in one.requests] == [ids_of(r, tokenizer) for r in other.requests]
    assert [r.score for r in one.requests] == [r.score for r in other.requests]
    assert first.text() == second.text()
    assert one.requests[-1].score.sequences == tuple(tuple(tokenizer.encode(choice)) for choice in ("yes", "\nno"))


@pytest.mark.parametrize("compiled", [True, False])
def test_a_constrained_answer_heals_plain_text_only(compiled):
    @dslc.function
    def answer(s, lead):
        s += dslc.user("Well?")
        s += dslc.assistant(lead + dslc.gen("x", regex="[a-z]*"))

    for lead, healed in (("", ""), ("ab", "ab"), ("\n", "\n")):
        backend = ScriptedBackend("ok", tokenizer=ScriptedTokenizer(WORDS, chat_template=PLAIN_TEMPLATE))
        backend.capabilities = replace(backend.capabilities, healing=True)
        answer.run(lead=lead, backend=backend, compiled=compiled)
        assert backend.requests[-1].healed == healed
