"""Budgets: the interval printed beforehand holds what a run costs, on random programs and on cases by hand."""

import hashlib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.programs import RUNNABLE_OPS, programs
from support.scripted import ScriptedBackend, ScriptedTokenizer

from dslc.compiler.account import evaluate
from dslc.compiler.budget import ANY, Span, beyond, budget, together
from dslc.compiler.lower import lower
from dslc.compiler.parser import parse_program
from dslc.compiler.pipeline import compile_program
from dslc.compiler.recording import Recording
from dslc.lang.executor import Executor, RunOptions
from dslc.lang.hub import Hub, Task
from dslc.lang.walker import walk_plan

ANSWERS = ("", "yes\nand more", "the answer is 100.", " no", "abcd", "é日本", "x" * 9, "and ab")


def answer(prompt):
    return ANSWERS[hashlib.sha256(prompt.encode()).digest()[0] % len(ANSWERS)]


def usage_of(plan, arguments, tokenizer):
    recording = Recording(ScriptedBackend(answer, tokenizer=tokenizer))
    hub = Hub(recording)
    executor = Executor(hub, "p", RunOptions((("max_new_tokens", 6),), seed=7), 0, plan)
    list(hub.run([Task(executor, lambda: walk_plan(executor, plan, arguments))]))
    if executor.failure is not None or not recording.entries:
        return None
    jobs = recording.jobs()
    return evaluate(jobs) if all(job.prompt for job in jobs) else None  # an engine refuses an empty prompt


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(program=programs(RUNNABLE_OPS | {"special"}, max_size=12, constraints=False), bos=st.booleans(), data=st.data())
def test_a_run_lies_inside_its_budget(program, bos, data):
    tokenizer = ScriptedTokenizer(bos=bos)
    arguments = {p.name: data.draw(st.sampled_from(["a", "two words", "ab", "\n", "é"])) for p in program.params}
    plan = compile_program(program, tokenizer) if data.draw(st.booleans()) else lower(program, tokenizer.hash)
    usage = usage_of(plan, arguments, tokenizer)
    if usage is None:  # it failed, or asked for nothing
        return
    for known in (arguments, {}):
        found = budget(plan.program, tokenizer, known, {"max_new_tokens": 6})
        assert found.holds(usage) == {}
        for site in found.sites:
            assert site.prompt.least <= site.prompt.most <= site.total.most


CHAIN = """
program p(question) {
  %0 = arg "question"
  text "Q: "
  text %0
  %1 = gen "a" sampling=(max_new_tokens=5)
  text "\\nSo: "
  %2 = gen "b" sampling=(max_new_tokens=3, n=2)
}"""


def test_a_chain_by_hand():
    tokenizer = ScriptedTokenizer()
    found = budget(parse_program(CHAIN), tokenizer, {"question": "why"})
    first = len(tokenizer.encode("Q: why"))
    assert found.requests == Span(2, 2)
    assert found.generated_tokens == Span(0, 5 + 2 * 3)
    assert [site.prompt.least for site in found.sites] == [first, first + len(tokenizer.encode("\nSo: "))] or (
        found.sites[1].prompt.least >= first + 1
    )
    assert found.sites[0].prompt == Span(first, first)
    assert found.sites[1].prompt.most <= first + 5 + tokenizer.vocab_size
    assert str(budget(parse_program(CHAIN), tokenizer).prompt_tokens).startswith("at least")


def test_branches_give_the_hull_and_forks_the_longest_chain():
    tokenizer = ScriptedTokenizer()
    found = budget(
        parse_program("""
program p(x) {
  %0 = arg "x"
  text "a"
  %1 = eq %0 "y"
  switch %1 {
    case true { %2 = gen "b" sampling=(max_new_tokens=2) }
    case false {
      fork 1 2
      [1] %3 = gen "c" sampling=(max_new_tokens=4)
      [2] %4 = gen "d" sampling=(max_new_tokens=4)
      join gather_variable 1 2
      %5 = gen "e" sampling=(max_new_tokens=1)
    }
  }
}"""),
        tokenizer,
    )
    assert found.requests == Span(1, 3)  # the branches of the fork may have their gens in common
    assert found.generated_tokens == Span(0, 9)
    assert found.forwards.least == 1


def test_batches_and_contexts():
    tokenizer = ScriptedTokenizer()
    program = parse_program(CHAIN)
    rows = [budget(program, tokenizer, {"question": "q" * num}) for num in (3, 40)]
    batch = together(rows, 50)
    assert batch.requests == Span(2, 4)
    assert batch.computed.least == 50 <= batch.computed.most
    never, maybe = beyond(rows[1], 20)
    assert [site.op.var for site in never] == ["a", "b"] and not maybe
    never, maybe = beyond(rows[0], 12)
    assert not never and [site.op.var for site in maybe][-1] == "b"


def test_a_break_is_unbounded():
    program = parse_program('program p() { text "a"; %0 = gen "x" sampling=(max_new_tokens=2); opaque "a call" }')
    found = budget(program, ScriptedTokenizer())
    assert found.requests.least == 1 and found.requests.most == ANY.most


@pytest.mark.parametrize(("span", "text"), [(Span(2, 2), "2"), (Span(0, 5), "0 to 5"), (ANY, "at least 0")])
def test_spans_print(span, text):
    assert str(span) == text and span.least in span
