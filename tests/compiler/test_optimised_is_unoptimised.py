"""Law: optimised = unoptimised = saved and loaded. Random programs send the same requests and end in the same state,
with all passes, with none, with each left out, and after a save; down to the ids of every prompt."""

import hashlib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.programs import HOSTS, RUNNABLE_OPS, programs
from support.scripted import ScriptedBackend, ScriptedTokenizer, request_ids_and_seeds

from dslc.compiler.lower import lower
from dslc.compiler.passes.base import CompileOptions
from dslc.compiler.pipeline import PASS_NAMES, compile_program
from dslc.compiler.plan import Plan
from dslc.compiler.prompts import prompts
from dslc.core.errors import DslcError
from dslc.lang.executor import Executor, RunOptions
from dslc.lang.hub import Hub, Task
from dslc.lang.state import ProgramState
from dslc.lang.walker import walk_plan

ANSWERS = ("", "yes\nand more", "the answer is 100.", " no", "abcd", "é日本", "x" * 9, "and ab")


def answer(prompt):
    return ANSWERS[hashlib.sha256(prompt.encode()).digest()[0] % len(ANSWERS)]


def outcome(plan, arguments, tokenizer):
    """Everything observable of a run: requests, text, turns, variables, what it returns, how it fails."""
    backend = ScriptedBackend(answer, tokenizer=tokenizer)
    hub = Hub(backend)
    executor = Executor(hub, plan.program.title, RunOptions((("max_new_tokens", 6),), seed=7), 0, plan)
    executor.hosts = HOSTS
    (task,) = hub.run([Task(executor, lambda: walk_plan(executor, plan, arguments))])
    failure = executor.failure
    found = {
        "requests": request_ids_and_seeds(backend),
        "returned": repr(task.result),
        "failure": type(failure).__name__,
        "failed_at": failure.where if isinstance(failure, DslcError) else None,
    }
    if failure is None:
        state = ProgramState(executor)
        found["text"], found["messages"] = state.text(), state.messages()
        found["variables"] = {name: repr(state[name]) for name in executor.streams[0].variables}
    return found, backend


def arguments_of(program, data):
    return {param.name: data.draw(st.sampled_from(["a", "two words", "ab", "\n", "é"])) for param in program.params}


@pytest.mark.parametrize("bos", [False, True])
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(program=programs(RUNNABLE_OPS | {"special"}, max_size=12, constraints=False), data=st.data())
def test_the_same_requests_and_the_same_state(bos, program, data):
    tokenizer = ScriptedTokenizer(bos=bos)
    arguments = arguments_of(program, data)
    plain, _ = outcome(lower(program), arguments, tokenizer)
    plan = compile_program(program, tokenizer)
    assert outcome(plan, arguments, tokenizer)[0] == plain
    assert outcome(Plan.from_json(plan.to_json()), arguments, tokenizer)[0] == plain
    left_out = data.draw(st.sampled_from(PASS_NAMES))
    other = compile_program(program, tokenizer, options=CompileOptions((left_out,)))
    assert outcome(other, arguments, tokenizer)[0] == plain


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(program=programs(RUNNABLE_OPS | {"special"}, max_size=12, constraints=False), bos=st.booleans(), data=st.data())
def test_what_was_known_beforehand_is_so(program, bos, data):
    """Static prefixes begin the prompts that are sent, and what the arguments tell of a first prompt is its whole."""
    tokenizer = ScriptedTokenizer(bos=bos)
    arguments = arguments_of(program, data)
    plan = compile_program(program, tokenizer)
    _found, backend = outcome(plan, arguments, tokenizer)
    known = {prompt.out.id: prompt for prompt in prompts(plan.program, tokenizer, arguments)}
    facts = {facts.out.id: facts for facts in plan.facts}
    for request in backend.requests:
        ids = tuple(i for segment in request.segments for i in segment.ids)
        static = facts[request.origin.op]
        if static.prefix >= 0:
            prefix = plan.prefixes[static.prefix][: static.num_static_tokens]
            assert ids[: len(prefix)] == prefix
        prompt = known[request.origin.op]
        assert ids[: len(prompt.ids)] == prompt.ids
        if prompt.is_whole and request.score is None:
            assert ids == (*prompt.ids, *tokenizer.encode(prompt.pending))
