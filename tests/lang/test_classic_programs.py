"""The classic programs of the field, our versions of which are the examples.

They run on a scripted backend with an error at each request of each, and on the built-in model for the shape of what
they give."""

import asyncio
import importlib.util
import linecache
import sys
import threading
import time
from pathlib import Path

import pytest
from support.scripted import ScriptedBackend, request_ids_and_seeds

import dslc
from dslc.core.errors import Aborted, QueueFull

EXAMPLES = Path(dslc.__file__).parent / "examples"


def load(name):
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


CITY = '{"name": "Paris", "country": "France", "size": "large"}'
CALL = '{"name": "calculate", "arguments": {"left": 2, "operator": "+", "right": 3}}'
MIA = '{"name": "Mia", "age": 12, "mood": "happy"}'

# file: program, arguments, what a scripted model says, and what must come of it on the built-in model
PROGRAMS = {
    "few_shot_qa": ("few_shot_qa", {"question": "Why?"}, " Because.\n", lambda s: isinstance(s["answer"], str)),
    "multi_turn_chat": ("multi_turn_chat", {"name": "Emma"}, "Hello.", lambda s: len(s.messages()) >= 4),
    "multiple_choice": (
        "multiple_choice", {"question": "What?", "first": "a", "second": "b"}, "", lambda s: s["answer"] in ("A", "B"),
    ),
    "json_by_regex": ("city_by_regex", {"city": "Paris"}, CITY, lambda s: s["json"].startswith('{"name": "')),
    "json_by_schema": ("city_by_type", {"city": "Paris"}, CITY, lambda s: s["city"].size in ("small", "large")),
    "expert_answer": ("expert_answer", {"question": "Why?"}, "A physicist.", lambda s: "expert" in s and "answer" in s),
    "tool_use": ("tool_use", {"question": "What is 1 + 2?"}, " 1 + 2\n", lambda s: isinstance(s.ret_value, str)),
    "tool_call": (
        "tool_call", {"question": "What is 2 + 3?"}, CALL, lambda s: s["call"].name in ("calculate", "capital"),
    ),
    "react": ("react", {"question": "Where?"}, " I search.", lambda s: s["action"] in ("Search", "Finish")),
    "tip_suggestion": ("tip_suggestion", {"topic": "sleep"}, " Sleep well.", lambda s: "Tip 2:" in s.text()),
    "parallel_encoding": (
        "parallel_encoding", {"documents": ("a", "b"), "question": "c?"}, " b", lambda s: "Note 2: b\n" in s.text(),
    ),
    "streaming_logprobs": ("story", {"beginning": "The fox"}, " ran away", lambda s: s.text().startswith("The fox")),
    "tree_of_thought": ("tree_of_thought", {"question": "Why?"}, " Think.\n", lambda s: len(s["answer"][1]) == 2),
    "skeleton_of_thought": (
        "skeleton_of_thought", {"question": "How?"}, " One.\n Two.", lambda s: len(s["detail"]) == s.ret_value,
    ),
    "llm_judge": ("llm_judge", {"text": "A text."}, "7", lambda s: 1 <= s.ret_value <= 9),
    "document_qa": ("document_qa", {"document": "Mia sings.", "question": "Who?"}, "Mia", lambda s: "answer" in s),
    "self_consistency": ("self_consistency", {"question": "5 + 3?"}, "8", lambda s: 1 <= s.ret_value[1] <= 8),
    "character_extraction": (
        "extract_character", {"text": "Mia is 12."}, MIA, lambda s: isinstance(s["character"].age, int),
    ),
    "typed_extraction": ("extract", {"text": "Mia is 12."}, MIA, lambda s: isinstance(s["character"].age, int)),
}  # fmt: skip


@pytest.fixture(params=sorted(PROGRAMS))
def classic(request):
    program, arguments, answer, shape = PROGRAMS[request.param]
    return getattr(load(request.param), program), arguments, answer, shape


def backend_of(answer, fails_at=None, **options):
    """A scripted backend; its request number `fails_at` fails."""
    backend = ScriptedBackend(answer, **options)
    make, seen = backend._job, []

    def job(request, sink):
        made = make(request, sink)
        seen.append(request)
        if len(seen) - 1 == fails_at:
            made.error = dslc.core.errors.ErrorInfo.of(QueueFull("injected"))
        return made

    backend._job = job
    return backend


def test_every_example_compiles_whole():
    programs = [getattr(load(file), name) for file, (name, *_) in PROGRAMS.items()]
    assert len(programs) >= 18
    for program in programs:
        program.compile(strict=True)


def test_every_example_is_held_here():
    files = {path.stem for path in EXAMPLES.glob("*.py")}
    assert files - {"demo", "picture_comparison"} == set(PROGRAMS)  # those two have tests of their own


def test_interpreted_equals_what_run_chooses(classic):
    program, arguments, answer, _ = classic
    chosen, interpreted = backend_of(answer), backend_of(answer)
    a = program.run(**arguments, backend=chosen, seed=3)
    b = program.run(**arguments, backend=interpreted, seed=3, compiled=False)
    assert a.text() == b.text() and a.ret_value == b.ret_value and a.variables() == b.variables()
    # A plan may send the requests of its branches in another order, and equal ones of two branches once.
    assert asked(chosen) == asked(interpreted)


def asked(backend):
    """What was asked for: prompt, sampling, choices; not by which branch."""
    return {request[:-2] for request in request_ids_and_seeds(backend)}


def test_an_error_at_each_request_surfaces_with_its_line(classic):
    program, arguments, answer, _ = classic
    counted = backend_of(answer)
    program.run(**arguments, backend=counted, seed=3)
    count = len(counted.requests)
    assert count >= 1
    for compiled in (None, False):
        for k in range(count):
            backend = backend_of(answer, fails_at=k)
            with pytest.raises(QueueFull) as caught:
                program.run(**arguments, backend=backend, seed=3, compiled=compiled)
            error = caught.value
            source = linecache.getline(error.where.file, error.where.line)
            assert Path(error.where.file).parent == EXAMPLES and ("gen(" in source or "select(" in source)
            assert f"after the prompt ending in {backend.prompts[k][-60:]!r}" in str(error) or "select(" in source
            assert backend.num_in_flight == 0
            (state,) = program.run_batch([arguments], backend=backend_of(answer, fails_at=k), seed=3)
            assert isinstance(state.error(), QueueFull)
            with pytest.raises(QueueFull):
                state.text()


def test_an_error_reaches_streams_and_event_loops(classic):
    program, arguments, answer, _ = classic
    with pytest.raises(QueueFull):
        list(program.run(**arguments, backend=backend_of(answer, fails_at=0), stream=True).text_iter())
    with pytest.raises(QueueFull):
        asyncio.run(program.arun(**arguments, backend=backend_of(answer, fails_at=0)))


def test_a_cancel_ends_it(classic):
    program, arguments, answer, _ = classic
    backend = backend_of(answer, tokens_per_step=1)
    step, gate = backend.step, threading.Event()
    backend.step = lambda: (gate.wait(5), step())
    state = program.run(**arguments, backend=backend, stream=True)
    state.cancel()
    gate.set()
    assert isinstance(state.error(), Aborted)
    assert backend.num_in_flight == 0


def test_a_slow_reader_gets_everything(classic):
    program, arguments, answer, _ = classic
    expected = program.run(**arguments, backend=backend_of(answer), seed=3).text()
    found = ""
    for piece in program.run(
        **arguments, backend=backend_of(answer, tokens_per_step=1), seed=3, stream=True
    ).text_iter():
        time.sleep(0.0005)
        found += piece
    assert found == expected


@pytest.fixture(scope="module")
def engine():
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    with dslc.Engine(dtype="float32") as engine:
        yield engine


def test_on_the_built_in_model(classic, engine):
    program, arguments, _, shape = classic
    state = program.run(**arguments, backend=engine, seed=1, temperature=0)
    assert shape(state)
    again = program.run(**arguments, backend=engine, seed=1, temperature=0, compiled=False)
    assert again.text() == state.text()


def test_the_streaming_example_adds_up_its_log_probs(engine):
    total = asyncio.run(load("streaming_logprobs").main(engine))
    assert total < 0
