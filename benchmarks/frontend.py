"""The price of the language: programs on a backend that answers at once, beside SGLang's interpreter.

    python benchmarks/frontend.py --sglang PATH       # PATH: the `lang` folder of an installed or unpacked SGLang

Rows: dslc interpreted (`compiled=False`) and from its plan, a batch in an event loop, and the peer with a thread for
each state (its default) and without (`use_thread=False`). All run in one process, taking turns within each repeat; a
figure is the median over the repeats, each the least of several runs. Both sides run the same bodies, and neither
tokenises: the stand-in of dslc's backend has a tokenizer of one id per text, that of the peer takes text. A `select` of
either calls its choice method.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import importlib
import platform
import statistics
import sys
import threading
import time
import traceback
import tracemalloc
import types
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import dslc
from dslc.core.backend import Capabilities
from dslc.core.events import Finished, FinishReason, Output
from dslc.core.quick import maker

NUM_OPS = 500  # of a program that repeats one op
LONG = "x" * 200_000
ANSWER = " ok"
STEP = 8  # branches of a fork
new_finished = maker(Finished)  # that of the peer's stand-in is a tuple: neither is to cost much


class OneId:
    """A tokenizer that costs nothing: a text is one id."""

    bos_id = None
    eos_ids = (0,)
    chat_template = None
    vocab_size = 1 << 20
    hash = "one-id"

    def encode(self, text: str) -> tuple[int, ...]:
        return (hash(text) & 0xFFFFF,) if text else ()

    encode_prompt = encode

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        return ""

    def safe_cut(self, text: str) -> int:
        return len(text)

    def find_special(self, text: str) -> None:
        return None

    def split_special(self, text: str) -> list[str]:
        return [text] if text else []


class Instant:
    """dslc's backend: every request has its result before `submit` returns."""

    capabilities = Capabilities("instant", scoring=True, logprobs=True, streaming=True, token_ids=True)

    def __init__(self) -> None:
        self.tokenizer = OneId()
        self.counts_threads = False  # in batches only: asking costs as much as making the result
        self.max_threads = 0
        self._outputs = (Output(0, ANSWER, (10,), (10,), "", FinishReason("stop")),)

    def submit(self, requests: Sequence[Any], sink: Callable[[Any], None]) -> None:
        if self.counts_threads:
            self.max_threads = max(self.max_threads, threading.active_count())
        for request in requests:
            if request.score is None:
                sink(new_finished(request.id, self._outputs, 5, 0, 1, 0.0, 0.0, 0.0))
            else:
                scores = tuple([(-1.0 - i,) for i in range(len(request.score.sequences))])
                sink(new_finished(request.id, (), 5, 0, 1, 0.0, 0.0, 0.0, (), scores))

    def wait(self, ready: Callable[[], bool], timeout: float | None = None) -> bool:
        if not ready() and timeout is not None:
            time.sleep(timeout / 10)
        return ready()

    def abort(self, request_ids: Sequence[str]) -> None:
        pass

    def pin(self, ids: Sequence[int], cache_salt: str = "") -> Any:
        return None

    def unpin(self, handle: Any) -> None:
        pass


def load_peer(folder: Path) -> Any:
    """SGLang's language from its `lang` folder alone, with a backend that answers at once.

    Of the package around it only three helpers of `sglang.utils` are stood in for; they are of no use here.
    """

    def package(name: str, path: list[str], **members: Any) -> None:
        module = types.ModuleType(name)
        module.__path__ = path  # type: ignore[attr-defined]
        module.__dict__.update(members)
        sys.modules[name] = module

    package("sglang", [])
    package("sglang.lang", [str(folder)])
    package(
        "sglang.utils", [], encode_image_base64=None, encode_video_base64=None,
        get_exception_traceback=traceback.format_exc,
    )  # fmt: skip
    api: Any = importlib.import_module("sglang.lang.api")
    base: Any = importlib.import_module("sglang.lang.backend.base_backend")

    class PeerInstant(base.BaseBackend):  # type: ignore[misc]
        counts_threads = False
        max_threads = 0

        def generate(self, s: Any, sampling_params: Any) -> Any:
            if self.counts_threads:
                self.max_threads = max(self.max_threads, threading.active_count())
            return ANSWER, {"id": "0", "prompt_tokens": 5, "completion_tokens": 1}

        def select(self, s: Any, choices: list[str], temperature: float, choices_method: Any) -> Any:
            rows = [[[-1.0 - i, 10, None]] for i in range(len(choices))]
            return choices_method(
                choices=choices, normalized_prompt_logprobs=[row[0][0] for row in rows], input_token_logprobs=rows,
                output_token_logprobs=[[] for _ in choices], unconditional_token_logprobs=None,
            )  # fmt: skip

    return types.SimpleNamespace(function=api.function, gen=api.gen, select=api.select, backend=PeerInstant())


def programs(lang: Any) -> dict[str, tuple[Any, int]]:
    """(program, ops in it) by the name of the op; written once for both languages."""
    gen, select = lang.gen, lang.select

    @lang.function
    def empty(s):  # type: ignore[no-untyped-def]
        pass

    @lang.function
    def text(s, word="hello"):  # type: ignore[no-untyped-def]
        for _ in range(NUM_OPS):
            s += word

    @lang.function
    def long_text(s, word="hello", before=LONG):  # type: ignore[no-untyped-def]
        s += before
        for _ in range(NUM_OPS):
            s += word

    @lang.function
    def gens(s):  # type: ignore[no-untyped-def]
        for _ in range(NUM_OPS):
            s += gen("a", max_tokens=16)

    @lang.function
    def reads(s):  # type: ignore[no-untyped-def]
        for _ in range(NUM_OPS):
            s += gen("a", max_tokens=16)
            s["a"]

    @lang.function
    def selects(s):  # type: ignore[no-untyped-def]
        s += "x"
        for _ in range(NUM_OPS):
            s += select("a", ["yes", "no"])

    @lang.function
    def fork(s):  # type: ignore[no-untyped-def]
        s += "text"
        branches = s.fork(STEP)
        branches.join()

    return {
        "empty run": (empty, 1), "text": (text, NUM_OPS), "text behind 200,000 characters": (long_text, NUM_OPS),
        "gen": (gens, NUM_OPS), "gen + read": (reads, NUM_OPS), "select": (selects, NUM_OPS),
        "fork(8) + join": (fork, 1),
    }  # fmt: skip


def batch_program(lang: Any) -> Any:
    gen = lang.gen

    @lang.function
    def answer(s, question):  # type: ignore[no-untyped-def]
        s += "Q: "
        s += question
        s += "\nA:"
        s += gen("answer", max_tokens=16)

    return answer


CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}


def seconds(call: Callable[[], Any], atleast: float, clock: Callable[[], float]) -> float:
    """Of one call: the least of as many as take `atleast` seconds, so that other processes count little."""
    least, until = float("inf"), time.perf_counter() + atleast
    while time.perf_counter() < until or least == float("inf"):
        began = clock()
        call()
        least = min(least, clock() - began)
    return least


def modes(ours: Instant, peer: Any) -> dict[str, tuple[dict[str, tuple[Any, int]], Callable[[Any], Any]]]:
    """By name: programs, and how to run one to its end."""
    mine = programs(dslc)
    found: dict[str, Any] = {
        "interpreted": (mine, lambda program: program.run(backend=ours, compiled=False)),
        "from the plan": (mine, lambda program: program.run(backend=ours, compiled=True)),
    }
    if peer is not None:
        theirs = programs(peer)
        found["SGLang"] = (theirs, lambda program: program.run(backend=peer.backend).sync())
        found["SGLang, no threads"] = (theirs, lambda program: program.run(backend=peer.backend, use_thread=False))
    return found


def price_ops(
    ours: Instant, peer: Any, repeat: int, atleast: float, clock: Callable[[], float]
) -> dict[str, dict[str, float]]:
    """Microseconds per op, by op and mode."""
    known = modes(ours, peer)
    samples: dict[str, dict[str, list[float]]] = {name: {mode: [] for mode in known} for name in programs(dslc)}
    for turn in range(repeat + 1):  # the first is for warming up
        for name, row in samples.items():
            for mode, (table, run) in known.items():
                program, num = table[name]
                spent = seconds(lambda run=run, program=program: run(program), atleast, clock)  # type: ignore[misc]
                if turn:
                    row[mode].append(spent / num * 1e6)
    return {name: {mode: statistics.median(taken) for mode, taken in row.items()} for name, row in samples.items()}


def price_batches(
    ours: Instant, peer: Any, repeat: int, size: int, clock: Callable[[], float]
) -> dict[str, dict[str, float]]:
    """By mode: programs/s of batches, the threads there were, bytes per finished state."""
    mine = batch_program(dslc)
    rows = [{"question": f"number {i}"} for i in range(size)]
    runs: dict[str, tuple[Any, Callable[[], Any]]] = {
        "interpreted": (ours, lambda: mine.run_batch(rows, backend=ours, compiled=False)),
        "from the plan": (ours, lambda: mine.run_batch(rows, backend=ours, compiled=True)),
        "in an event loop": (ours, lambda: asyncio.run(mine.arun_batch(rows, backend=ours, compiled=False))),
    }
    if peer is not None:
        theirs = batch_program(peer)
        runs["SGLang"] = (peer.backend, lambda: theirs.run_batch([dict(row) for row in rows], backend=peer.backend))
    rates: dict[str, list[float]] = {mode: [] for mode in runs}
    threads: dict[str, int] = {}
    for turn in range(repeat + 1):
        for mode, (backend, run) in runs.items():
            backend.counts_threads, backend.max_threads, least = True, 0, float("inf")
            for _ in range(3):
                gc.collect()
                began = clock()
                states = run()
                least = min(least, clock() - began)
                assert len(states) == size and states[-1]["answer"] == ANSWER
                del states
            threads[mode] = max(threads.get(mode, 0), backend.max_threads)
            if turn:
                rates[mode].append(size / least)
    return {
        mode: {
            "programs/s": statistics.median(rates[mode]), "threads": float(threads[mode]),
            "bytes": state_bytes(run, size),
        }
        for mode, (_, run) in runs.items()
    }  # fmt: skip


def state_bytes(run: Callable[[], list[Any]], size: int) -> float:
    """What a finished state keeps, without the arguments that its caller has anyway."""
    del run()[:]
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        states = run()
        gc.collect()
        return (tracemalloc.get_traced_memory()[0] - before) / len(states[:size])
    finally:
        tracemalloc.stop()


def huge_batch(ours: Instant, size: int) -> dict[str, float]:
    """Programs/s of one batch of this size, interpreted and from the plan."""
    mine = batch_program(dslc)
    rows = [{"question": f"number {i}"} for i in range(size)]
    found = {}
    for mode, compiled in (("interpreted", False), ("from the plan", True)):
        began = time.perf_counter()
        states = mine.run_batch(rows, backend=ours, compiled=compiled)
        found[mode] = size / (time.perf_counter() - began)
        assert len(states) == size
        del states
        gc.collect()
    return found


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print()


def bars(ops: dict[str, dict[str, float]], batches: dict[str, dict[str, float]]) -> list[tuple[str, str, str]]:
    """(what, the bar, what was measured): the interpreter against the peer."""
    wanted = {"empty run": 10.0, "gen": 3.0, "fork(8) + join": 20.0}
    found = []
    for name, row in ops.items():
        if "SGLang" not in row:
            continue
        for mode in ("interpreted", "from the plan"):
            faster = row["SGLang"] / row[mode]
            bar = wanted.get(name, 1.0)
            found.append((f"{name}, {mode}: against threads", f">= {bar:g}x", _judged(faster, faster >= bar)))
            share = row[mode] / row["SGLang, no threads"]
            found.append((f"{name}, {mode}: time against no threads", "<= 1.5x", _judged(share, share <= 1.5)))
    if "SGLang" in batches:
        for mode in ("interpreted", "from the plan"):
            faster = batches[mode]["programs/s"] / batches["SGLang"]["programs/s"]
            found.append((f"batch of 1,000, {mode}", ">= 5x", _judged(faster, faster >= 5)))
    for mode in ("interpreted", "from the plan"):
        size = batches[mode]["bytes"]
        found.append((f"bytes per finished state, {mode}", "< 2,048", _judged(size, size < 2048, "")))
        flat = ops["text behind 200,000 characters"][mode] / ops["text"][mode]
        found.append((f"text behind 200,000 characters, {mode}", "flat (<= 1.5x)", _judged(flat, flat <= 1.5)))
    return found


def _judged(value: float, is_met: bool, unit: str = "x") -> str:
    return f"{value:,.2f}{unit}" + ("" if is_met else " MISSED")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sglang", type=Path, help="the `lang` folder of SGLang; without it there is no peer")
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.05, help="of each figure in each repeat")
    parser.add_argument("--batch", type=int, default=1000)
    parser.add_argument("--huge", type=int, default=100_000, help="programs of one more batch of ours; 0: none")
    parser.add_argument(
        "--clock", choices=CLOCKS, default="wall", help="cpu: processor time, for a busy machine; waiting is free then"
    )
    options = parser.parse_args()
    clock = CLOCKS[options.clock]
    peer = None
    if options.sglang is not None and (options.sglang / "interpreter.py").is_file():
        peer = load_peer(options.sglang)
    else:
        print(f"no SGLang at {options.sglang}: its rows and bars are left out\n")
    ours = Instant()
    print(f"python {platform.python_version()}, {date.today()}, {options.clock} time,", end=" ")
    print(f"medians of {options.repeat} interleaved repeats\n")
    ops = price_ops(ours, peer, options.repeat, options.seconds, clock)
    columns = list(next(iter(ops.values())))
    print_table(["µs per", *columns], [[name, *(f"{row[mode]:.2f}" for mode in columns)] for name, row in ops.items()])
    batches = price_batches(ours, peer, max(3, options.repeat // 2), options.batch, clock)
    print_table(
        [f"batch of {options.batch:,}", "programs/s", "threads", "bytes per finished state"],
        [[mode, *(f"{row[key]:,.0f}" for key in ("programs/s", "threads", "bytes"))] for mode, row in batches.items()],
    )
    if options.huge:
        found = huge_batch(ours, options.huge)
        print_table(
            [f"batch of {options.huge:,}", "programs/s"], [[mode, f"{rate:,.0f}"] for mode, rate in found.items()]
        )
    print_table(["bar", "wanted", "measured"], bars(ops, batches))


if __name__ == "__main__":
    main()
