"""Programs read while they run: nothing is lost, however late or slowly it is read, in threads and event loops."""

import asyncio
import threading
import time

import pytest
from support.scripted import ScriptedBackend

import dslc
from dslc.core.errors import Aborted, QueueFull

LONG = "one two three four five six seven eight nine ten"


@dslc.function
def program(s, q="q"):
    s += "Q: " + q + " A: "
    s += dslc.gen("a", stop="\n")
    s += " | "
    s += dslc.gen("b", max_tokens=9)
    s += " end"
    return len(s["a"])


def backend_of(answer=LONG, **options):
    return ScriptedBackend(answer, tokens_per_step=2, **options)


def slow_backend():
    """A generation of a thousand steps of a millisecond each."""
    backend = backend_of("word " * 400)
    step = backend.step
    backend.step = lambda: (time.sleep(0.001), step())
    return backend


@pytest.fixture(params=[False, True], ids=["interpreted", "compiled"])
def compiled(request):
    return request.param


def test_pieces_make_up_the_text(compiled):
    expected = program.run(backend=backend_of(), compiled=compiled, seed=1)
    state = program.run(backend=backend_of(), stream=True, compiled=compiled, seed=1)
    pieces = list(state.text_iter())
    assert "".join(pieces) == expected.text() == state.text() and len(pieces) > 8
    assert state["a"] == expected["a"] and state.ret_value == len(LONG) and state.error() is None
    assert state.messages() == []


def test_pieces_of_a_variable_are_there_however_late_they_are_read(compiled):
    state = program.run(backend=backend_of(), stream=True, compiled=compiled)
    early = list(state.text_iter("a"))
    assert "".join(early) == LONG and len(early) > 5
    state.sync()
    assert list(state.text_iter("a")) == early
    assert "".join(state.text_iter("b")) == state["b"]
    assert "".join(state.text_iter()) == state.text()


def test_the_first_piece_comes_before_the_generation_ends():
    backend = backend_of()
    gate = threading.Semaphore(0)
    step = backend.step

    def gated():
        if backend.num_in_flight:
            gate.acquire()
        step()

    backend.step = gated
    state = program.run(backend=backend, stream=True)
    pieces = state.text_iter("a")
    gate.release()
    gate.release()
    first = next(pieces)
    assert first == backend.tokenizer.decode(backend.tokenizer.encode(LONG)[:2])
    assert backend.num_in_flight == 1
    for _ in range(100):
        gate.release()
    assert first + "".join(pieces) == LONG
    state.sync()


def test_a_slow_reader_loses_nothing():
    state = program.run(backend=backend_of(), stream=True)
    found = ""
    for piece in state.text_iter("a"):
        time.sleep(0.002)
        found += piece
    assert found == LONG


def test_several_readers_each_get_everything():
    state = program.run(backend=backend_of(), stream=True)
    found = {}

    def read(i):
        found[i] = "".join(state.text_iter("a" if i % 2 else None))

    readers = [threading.Thread(target=read, args=(i,)) for i in range(6)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join(20)
    assert found == {i: LONG if i % 2 else state.text() for i in range(6)}


def test_meta_data_are_there_for_each_piece_and_none_is_dropped():
    async def collect():
        state = program.run(backend=backend_of(), stream=True, return_logprob=True, return_text_in_logprobs=True)
        pieces = [item async for item in state.text_async_iter("a", return_meta_data=True)]
        return state, pieces

    state, pieces = asyncio.run(collect())
    whole = state.get_meta_info("a")
    assert "".join(text for text, _ in pieces) == LONG
    assert [e for _, info in pieces for e in info["output_token_logprobs"]] == whole["output_token_logprobs"]
    assert [i for _, info in pieces for i in info["output_ids"]] == whole["output_ids"]
    assert [info["finish_reason"] for _, info in pieces[:-1]] == [None] * (len(pieces) - 1)
    assert pieces[-1][1]["finish_reason"] == whole["finish_reason"]
    assert "".join(text for _, _, text in whole["output_token_logprobs"]).startswith(LONG)


def test_async_iteration_does_not_block_the_loop():
    async def main():
        ticks = 0

        async def tick():
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0)

        ticker = asyncio.create_task(tick())
        backend = backend_of()
        step = backend.step
        backend.step = lambda: (time.sleep(0.002), step())
        state = program.run(backend=backend, stream=True)
        text = "".join([piece async for piece in state.text_async_iter()])
        ticker.cancel()
        return text, ticks, state.text()

    text, ticks, whole = asyncio.run(main())
    assert text == whole and ticks > 20


def test_leaving_an_iterator_aborts_the_generation():
    backend = slow_backend()
    state = program.run(backend=backend, stream=True, max_new_tokens=2000)
    for piece in state.text_iter("a"):
        assert piece
        break
    assert isinstance(state.error(), Aborted) and "was cancelled" in str(state.error())
    assert backend.num_in_flight == 0 and len(backend.aborted) == 1
    with pytest.raises(Aborted):
        state["b"]


def test_leaving_after_the_variable_is_whole_does_not():
    state = program.run(backend=backend_of(), stream=True)
    for piece in state.text_iter("a"):
        state["a"]
        assert piece
        break
    assert state.error() is None and state["b"]


def test_leaving_an_async_iterator_aborts_too():
    backend = slow_backend()

    async def main():
        state = program.run(backend=backend, stream=True, max_new_tokens=2000)
        pieces = state.text_async_iter("a")
        async for piece in pieces:
            assert piece
            break
        await pieces.aclose()
        return await asyncio.to_thread(state.error)

    assert isinstance(asyncio.run(main()), Aborted)
    assert backend.num_in_flight == 0


def test_cancel():
    backend = slow_backend()
    state = program.run(backend=backend, stream=True, max_new_tokens=2000)
    state.cancel()
    assert isinstance(state.error(), Aborted)
    state.cancel()
    with pytest.raises(Aborted):
        list(state.text_iter())


def test_errors_reach_the_reader(compiled):
    def answer(prompt):
        return QueueFull("full") if "|" in prompt else LONG

    state = program.run(backend=backend_of(answer), stream=True, compiled=compiled)
    found = []
    with pytest.raises(QueueFull, match=r"test_streaming.py:\d+: full"):
        for piece in state.text_iter():
            found.append(piece)
    assert "".join(found) == f"Q: q A: {LONG} | "
    assert "".join(state.text_iter("a")) == LONG
    with pytest.raises(QueueFull):
        state["b"]
    with pytest.raises(QueueFull):
        list(state.text_iter("b"))


def test_a_users_exception_reaches_the_reader():
    @dslc.function
    def broken(s):
        s += "x" + dslc.gen("a")
        s["a"]
        raise ValueError("mine")

    state = broken.run(backend=backend_of(), stream=True)
    with pytest.raises(ValueError, match="mine"):
        list(state.text_iter())
    assert isinstance(state.error(), ValueError)


def test_a_variable_that_is_never_set_raises():
    state = program.run(backend=backend_of(), stream=True)
    with pytest.raises(dslc.UndefinedVariable, match="'nope' was never set"):
        list(state.text_iter("nope"))
    with pytest.raises(dslc.UndefinedVariable):
        state["nope"]
    assert "a" in state and "nope" not in state


def test_values_that_are_not_generated_come_whole():
    @dslc.function
    def other(s):
        s["n"] = 5
        s += "pick " + dslc.select("c", ["yes", "no"])
        with s.var_scope("w"):
            s += "!" + dslc.gen("g", n=2)

    state = other.run(backend=backend_of("ok"), stream=True)
    assert list(state.text_iter("n")) == ["5"] and list(state.text_iter("c")) == [state["c"]]
    assert list(state.text_iter("w")) == ["!ok"] and state["g"] == ["ok", "ok"]
    assert "".join(state.text_iter("g")) == "ok"


def test_a_variable_generated_again_streams_again():
    @dslc.function
    def twice(s):
        s += "1" + dslc.gen("a")
        s["a"]
        s += "2" + dslc.gen("a")

    state = twice.run(backend=backend_of(lambda prompt: f"answer {prompt[0]} {len(prompt)}"), stream=True)
    state.sync()
    assert "".join(state.text_iter("a")) == state["a"] == "answer 1 12"


def test_nothing_can_be_appended_from_outside():
    state = program.run(backend=backend_of(), stream=True)
    with pytest.raises(dslc.ProgramError, match=r"test_streaming.py:\d+: .*runs by itself"):
        state += "x"
    state.sync()


def test_a_finished_state_can_be_iterated_too():
    state = program.run(backend=backend_of())
    assert "".join(state.text_iter()) == state.text() and "".join(state.text_iter("a")) == state["a"]

    async def main():
        return [pair async for pair in state.text_async_iter("a", return_meta_data=True)]

    ((text, info),) = asyncio.run(main())
    assert text == LONG and info == state.get_meta_info("a")


def test_without_a_backend_that_streams_it_comes_in_larger_pieces():
    state = program.run(backend=backend_of(unlike=["streaming"]), stream=True)
    assert list(state.text_iter("a")) == [LONG]


def test_threads_end_when_nothing_streams():
    before = threading.active_count()
    states = [program.run(backend=backend_of(), stream=True) for _ in range(5)]
    for state in states:
        state.sync()
    end = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < end:
        time.sleep(0.02)
    assert threading.active_count() <= before
