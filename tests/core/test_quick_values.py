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
from dslc.core.quick import copier, maker
from dslc.core.request import GenRequest, LogprobWish, Origin, ScoreTrie, Segment, decode, encode
from dslc.core.sampling import SamplingParams
from dslc.lang import executor, hub

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


def test_a_maker_of_a_few_fields_gives_the_others_their_defaults():
    make = maker(GenRequest, ("id", "sampling", "segments", "origin"))
    segments, sampling, origin = (Segment(ids=(1, 2)),), SamplingParams(seed=3), Origin("p", 2)
    assert make("r", sampling, segments, origin) == GenRequest(
        id="r", segments=segments, sampling=sampling, origin=origin
    )
    with pytest.raises(TypeError, match="'segments'"):
        maker(GenRequest, ("id", "sampling"))
    with pytest.raises(TypeError, match="'nothing'"):
        maker(GenRequest, ("id", "sampling", "segments", "nothing"))


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


def test_a_line_that_asks_for_the_same_again_gets_the_same():
    def asked(name, *args, **options):
        return dslc.gen(name, *args, **options)

    def chosen(name, choices, **options):
        return dslc.select(name, choices, **options)

    first = asked("a", 16, stop="x")
    assert asked("a", 16, stop="x") is first and asked("b", 16, stop="x").var == "b"
    assert asked("a", 16, stop=("x",)).sampling == asked("a", 16, stop=["x"]).sampling == first.sampling
    assert asked("a", 17, stop="x").sampling != first.sampling
    there, here = asked("a", 16, stop="x"), dslc.gen("a", 16, stop="x")
    assert here.where.function != there.where.function and here.sampling == there.sampling
    assert asked("a", temperature=1).sampling == (("temperature", 1),)
    for wrong in (True, "1"):  # True is equal to 1
        with pytest.raises(dslc.RequestError, match="temperature"):
            asked("a", temperature=wrong)
    assert asked("n", int).spec.parse("7") == 7 and asked("n", float).spec.parse("7") == 7.0
    yes = chosen("c", ["yes", "no"])
    assert chosen("c", ["yes", "no"]) is yes and chosen("c", ["yes", "no", "or"]).choices == ("yes", "no", "or")
    assert chosen("c", ["yes", "no"], temperature=0.5).temperature == 0.5
    with pytest.raises(dslc.RequestError, match=r"choices\[1\]"):
        chosen("c", ["yes", ""])


@pytest.mark.parametrize("compiled", [False, None])
def test_seeds_depend_on_the_program_alone(compiled):
    """Each request of each stream has its own, in a batch as alone."""

    @dslc.function
    def program(s, q):
        s += q
        for _ in range(20):
            s += dslc.gen(max_tokens=1)
        forks = s.fork(3)
        for _ in range(9):
            forks += dslc.gen(max_tokens=1)
        forks.join()
        s += dslc.gen("last", max_tokens=1)

    def seeds(run, first=0):
        backend = ScriptedBackend("a")
        run(backend)
        asked: dict[tuple[int, str], list[int]] = {}
        for request in backend.requests:
            asked.setdefault((request.origin.instance, request.origin.stream), []).append(request.sampling.seed)
        return asked

    rows = [{"q": "a"}, {"q": "b"}]
    batch = seeds(lambda backend: program.run_batch(rows, backend=backend, seed=5, compiled=compiled))
    alone = seeds(lambda backend: program.run(q="b", backend=backend, seed=5, compiled=compiled))
    assert {path: found for (instance, path), found in batch.items() if instance == 0} == {
        path: found for (_, path), found in alone.items()
    }
    every = [seed for found in batch.values() for seed in found]
    assert len(every) == len(set(every)) == 2 * (21 + 27) and all(0 <= seed < 2**63 for seed in every)
    other = seeds(lambda backend: program.run(q="b", backend=backend, seed=6, compiled=compiled))
    assert not {seed for found in other.values() for seed in found} & set(every)


@pytest.mark.parametrize("has_tokenizer", [True, False])
def test_a_long_stream_sends_the_same_prompt_in_few_segments(has_tokenizer):
    backend = ScriptedBackend(lambda prompt: f"{len(prompt) % 10}", has_tokenizer=has_tokenizer)
    state = long_chain.run(backend=backend, compiled=False)
    text, ends = state.text(), [0]
    for turn in range(200):
        ends.append(text.index(f"{turn}:", ends[-1]) + len(f"{turn}:"))
    assert backend.prompts == [text[:end] for end in ends[1:]]
    assert max(len(request.segments) for request in backend.requests) <= 2 * 64


@pytest.mark.parametrize("max_ahead", [4, 1024])
def test_plans_that_wait_for_nothing_need_no_greenlet(monkeypatch, max_ahead):
    """All their ops are handed over at once; where there are too many, the hub works in between."""
    monkeypatch.setattr(executor, "MAX_AHEAD", max_ahead)
    begun = []
    start = hub.Hub._start
    monkeypatch.setattr(hub.Hub, "_start", lambda self, task: (start(self, task), begun.append(task.greenlet))[0])

    @dslc.function
    def straight(s, q):
        s += "Q: " + q
        for i in range(12):
            s += dslc.gen(f"a{i}", max_tokens=2)
        forks = s.fork(2)
        forks += dslc.select("b", ["yes", "no"])
        forks.join()
        s["c"] = int(q)

    rows = [{"q": q} for q in ("1", "2", "x", "3")]
    states = straight.run_batch(rows, backend=ScriptedBackend("ok"), compiled=True, seed=1)
    assert begun == [None] * 4
    body = straight.run_batch(rows, backend=ScriptedBackend("ok"), compiled=False, seed=1)
    for i in (0, 1, 3):
        assert states[i].text() == body[i].text() and states[i].variables() == body[i].variables()
    assert type(states[2].error()) is type(body[2].error()) is ValueError


@dslc.function
def long_chain(s):
    for turn in range(200):
        s += f"{turn}:"
        s += dslc.gen(max_tokens=1)


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
