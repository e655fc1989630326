"""Frozen values filled as plain ones are the same values, and what hot paths leave out is not missed."""

from __future__ import annotations

import gc
import pickle
import tracemalloc
from dataclasses import FrozenInstanceError, dataclass, replace

import pytest
from support.scripted import ScriptedBackend, ScriptedTokenizer

import dslc
from dslc.compiler.ir import Ref, Select
from dslc.core.errors import SourceLoc
from dslc.core.request import GenRequest, LogprobWish, Origin, ScoreTrie, Segment, decode, encode
from dslc.core.sampling import SamplingParams
from dslc.lang.quick import copier, maker

HERE = SourceLoc("x.py", 3, "f")
VALUES = [
    (Segment, {"ids": (1, 2)}),
    (Segment, {"text": "abc"}),
    (Origin, {"program": "p", "op": 3, "instance": 4, "stream": "0.1"}),
    (Ref, {"id": 7}),
    (GenRequest, {"id": "r", "segments": (Segment(ids=(1,)),), "sampling": SamplingParams(seed=3), "timeout_s": 1.5}),
    (
        GenRequest,
        {
            "id": "r",
            "segments": (Segment(text="a"),),
            "sampling": SamplingParams(),
            "score": ScoreTrie(((1,), (2,))),
            "logprobs": LogprobWish(top=2),
            "origin": Origin("p"),
        },
    ),
    (Select, {"out": Ref(1), "choices": ("a", "b"), "var": "x", "temperature": 0.5, "stream": 2, "where": HERE}),
]


@pytest.mark.parametrize(("cls", "values"), VALUES, ids=lambda value: getattr(value, "__name__", ""))
def test_made_quickly_is_the_same_value(cls, values):
    made, plain = maker(cls)(**values), cls(**values)
    assert type(made) is cls
    assert made == plain and hash(made) == hash(plain) and repr(made) == repr(plain)
    assert pickle.loads(pickle.dumps(made)) == plain
    assert replace(made) == plain
    with pytest.raises(FrozenInstanceError):
        setattr(made, next(iter(values)), None)
    with pytest.raises((AttributeError, TypeError)):
        made.something_else = 1
    if cls is GenRequest:
        assert encode(made) == encode(plain) and decode(encode(made)) == plain


@pytest.mark.parametrize(
    "value", [SamplingParams(), SamplingParams(stop="a", temperature=0.3, n=2, logit_bias={5: 1.0}, seed=9)]
)
def test_a_quick_copy_is_a_replace(value):
    copied = copier(SamplingParams, "seed")(value, 12345)
    assert copied == replace(value, seed=12345) and repr(copied) == repr(replace(value, seed=12345))
    assert type(copied) is SamplingParams and value == replace(value)
    with pytest.raises(FrozenInstanceError):
        copied.seed = 1


def test_what_cannot_be_made_quickly_is_refused():
    @dataclass(frozen=True)
    class Loose:
        a: int

    with pytest.raises(TypeError, match="slots"):
        maker(Loose)
    with pytest.raises(TypeError, match="'sed'"):
        copier(SamplingParams, "sed")
    with pytest.raises(TypeError):
        maker(GenRequest)(id="r", segments=(), nothing=1)


@pytest.mark.parametrize("compiled", [False, None])
def test_many_selects_leave_the_ids_of_one_text(compiled):
    """What a select settles of the text is what one tokenisation of the whole would have given."""

    @dslc.function
    def program(s):
        s += "The capital"
        for i in range(12):
            s += "ab"
            s += dslc.select(f"x{i}", ["c", " is", "cd", " not"])
            s += "bcd: 100"
            s += dslc.select(f"y{i}", ["0", "\n\n", "é"])
        fork = s.fork(2)
        fork += "bc"
        fork += dslc.gen("out", max_tokens=1)
        fork.join()
        s += dslc.gen("end", max_tokens=1)

    tokenizer = ScriptedTokenizer()
    backend = ScriptedBackend("ok")
    state = program.run(backend=backend, compiled=compiled, seed=1)
    text = state.text()
    assert len({state[f"x{i}"] for i in range(12)} | {state[f"y{i}"] for i in range(12)}) > 2
    gens = [request for request in backend.requests if request.score is None]
    ids = [sum((segment.ids for segment in request.segments), ()) for request in gens]
    before = text[: len(text) - len(state["end"])]
    assert ids[-1] == tuple(tokenizer.encode(before))
    assert ids[0] == ids[1] == tuple(tokenizer.encode(before + "bc"))


@pytest.mark.parametrize("compiled", [False, None])
def test_a_finished_state_keeps_little(compiled):
    @dslc.function
    def program(s, question):
        s += "Q: "
        s += question
        s += dslc.gen("answer", max_tokens=4)

    backend = ScriptedBackend("ok")
    rows = [{"question": f"number {i}"} for i in range(300)]
    program.run_batch(rows, backend=backend, compiled=compiled)
    backend.requests.clear()
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        states = program.run_batch(rows, backend=backend, compiled=compiled)
        backend.requests.clear()
        gc.collect()
        kept = (tracemalloc.get_traced_memory()[0] - before) / len(states)
    finally:
        tracemalloc.stop()
    assert kept < 2300  # of which the event, which is the backend's, is some 400
    assert states[7].get_meta_info("answer")["completion_tokens"] >= 1 and states[7].text().startswith("Q: number 7")


@pytest.mark.parametrize("compiled", [False, None])
def test_a_run_leaves_nothing_to_the_cycle_collector(compiled):
    """States are freed when the last reference goes: a batch makes no garbage that must be searched for."""

    @dslc.function
    def program(s, i):
        s += f"{i}"
        forks = s.fork(2)
        forks += dslc.gen("x")
        forks.join()
        with s.var_scope("all"):
            s += s["x"][0] + dslc.select("y", ["a", "b"])
        return s["y"]

    backend = ScriptedBackend("ok")

    def run():
        for state in program.run_batch([{"i": i} for i in range(5)], backend=backend, compiled=compiled):
            assert state.ret_value == state["y"] and state["all"] == "ok" + state["y"]
        program.run(i=7, backend=backend, compiled=compiled)

    run()
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        run()
        gc.collect()
        left = {type(found).__name__ for found in gc.garbage}
    finally:
        gc.set_debug(0)
        gc.enable()
        gc.garbage.clear()
    assert not left & {"Executor", "Stream", "Slot", "Task", "Hub", "ProgramState", "GenRequest"}
