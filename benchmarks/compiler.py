"""What the compiler itself costs: `python benchmarks/compiler.py [--repeats 15]`. No model, no network.

- tracing: once for each function. The one-off (reading and rewriting the source, for each code object of the process)
  and what each op then costs; the workloads of `workloads.py`, and long programs whose loops are unrolled.
- a row: from a plan and arguments to ops in its streams (`walk_plan`), per op of the plan; nothing is generated.
- the shell: `dslc compile` of a program of 50 ops, constraints cached, the interpreter's start included.

Microseconds and milliseconds of processor time (wall time for the shell); the least of the repeats. A trace is counted
in bytecodes too.
"""

from __future__ import annotations

import argparse
import gc
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

from frontend import Instant  # noqa: E402
from workloads import workloads  # noqa: E402

import dslc  # noqa: E402
from dslc.compiler.ir import walk  # noqa: E402
from dslc.compiler.tracing import rewrite  # noqa: E402
from dslc.core.text.load import load_tokenizer  # noqa: E402
from dslc.lang.executor import Executor  # noqa: E402
from dslc.lang.function import Function  # noqa: E402
from dslc.lang.hub import Hub  # noqa: E402
from dslc.lang.options import run_options  # noqa: E402
from dslc.lang.walker import walk_plan  # noqa: E402


@dslc.function
def long_questions(s, topic):
    for i in range(200):
        s += f"Question {i} about {topic}?\n"
        s += "Answer:" + dslc.gen(f"answer_{i}", max_tokens=8) + "\n"


@dslc.function
def long_chat(s, topic):
    for i in range(60):  # a stream that is given more steps than it may keep waits for its generations
        s += dslc.user(topic)
        s += dslc.assistant(dslc.gen(f"answer_{i}"))


@dslc.function
def long_text(s, topic, other):
    for i in range(200):
        s += f"{i}: {topic} and {other.upper()}.\n"
        s += other


@dslc.function
def long_loop(s, topics):
    for topic in topics:
        s += f"Question about {topic}?\n"
        s += "Answer:"
        s += topic + "\n"


LONG = (
    (long_questions, {"topic": "foxes"}), (long_chat, {"topic": "foxes"}),
    (long_text, {"topic": "foxes", "other": "owls"}), (long_loop, {"topics": ["foxes"] * 200}),
)  # fmt: skip

FIFTY = """import dslc


@dslc.function
def program(s, topic):
    for i in range(10):
        s += dslc.user(f"Question {i} about {topic}?")
        s += dslc.assistant(dslc.gen(f"answer_{i}", max_tokens=8, regex="[a-z ]+"))
"""


def least(call: Any, repeats: int) -> float:
    """Seconds of processor time."""
    found = []
    for _ in range(repeats):
        began = time.process_time()
        call()
        found.append(time.process_time() - began)
    return min(found)


def bytecodes(call: Any) -> int:
    """The instructions of Python's own that a call takes: the same on a busy machine as on an idle one."""
    count = 0

    def note(frame: Any, event: str, arg: Any) -> Any:
        nonlocal count
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        count += event == "opcode"
        return note

    sys.settrace(note)
    try:
        call()
    finally:
        sys.settrace(None)
    return count


def tracing(repeats: int) -> None:
    print("| program | ops | first trace of its code, ms | each trace, ms | µs per op | bytecodes per op |")
    print("|---|---|---|---|---|---|")
    loads = [(load.name, load.program) for load in workloads(1)] + [(f.__name__, f) for f, _ in LONG]
    for name, function in loads:

        def again(function: Any = function) -> Any:
            return Function(function.body, function.num_api_spec_tokens, function.bound).compile()

        def first(again: Any = again) -> None:
            rewrite._known.clear()
            again()

        num_ops = sum(1 for _ in walk(again().body))
        cold, warm = least(first, repeats), least(again, repeats)
        cells = [name, num_ops, f"{cold * 1e3:.2f}", f"{warm * 1e3:.2f}", f"{warm * 1e6 / num_ops:.1f}"]
        print("| " + " | ".join(map(str, [*cells, bytecodes(again) // num_ops])) + " |", flush=True)


def rows(repeats: int) -> None:
    backend: Any = Instant()
    backend.tokenizer = load_tokenizer(ROOT / "runtime" / "builtin" / "dslc_tiny")
    print("\n| program | ops walked | µs per op |\n|---|---|---|")
    options = run_options({}, None)
    for function, arguments in LONG:
        plan = function.plan(backend.tokenizer)
        num_ops = sum(1 for op in walk(plan.program.body))
        rounds = len(arguments["topics"]) if "topics" in arguments else 1

        def one(function: Any = function, plan: Any = plan, arguments: Any = arguments) -> None:
            executor = Executor(Hub(backend), function.__name__, options, 0, plan)
            executor.hosts = function.hosts
            walk_plan(executor, plan, arguments)

        one()
        gc.collect()
        seconds = least(one, repeats)
        print(f"| {function.__name__} | {num_ops * rounds} | {seconds * 1e6 / (num_ops * rounds):.2f} |", flush=True)


def shell(repeats: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "program.py"
        path.write_text(FIFTY)
        environment = {**os.environ, "DSLC_CACHE_DIR": f"{folder}/cache", "PYTHONPYCACHEPREFIX": f"{folder}/pyc"}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        dslc_command = str(Path(sys.executable).with_name("dslc"))
        command = [dslc_command, "compile", str(path), "--stats", "--emit", "plan"]
        wall, processor = [], []
        for _ in range(max(3, repeats // 3)):
            began, before = time.perf_counter(), _of_children()
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
            wall.append(time.perf_counter() - began)
            processor.append(_of_children() - before)
    ops = next(line for line in (done.stdout + done.stderr).splitlines() if ": ops " in line)
    print(f"\n`dslc compile` ({ops}): {min(wall):.3f} s, {min(processor):.3f} s of processor time; "
          f"the first time, with nothing cached, {wall[0]:.3f} s")  # fmt: skip


def _of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--only", choices=("tracing", "rows", "shell"))
    options = parser.parse_args()
    for section in (tracing, rows, shell):
        if options.only in (None, section.__name__):
            section(options.repeats)


if __name__ == "__main__":
    main()
