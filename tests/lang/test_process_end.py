"""A process that ends while threads of ours are about: it ends cleanly, at once, with the exit code of its own."""

import subprocess
import sys
import time

import pytest

PROGRAM = """
import sys, time
import dslc

def tool(x):
    time.sleep({sleep})
    return x

@dslc.function
def program(s, i):
    s += f"Q {{i}}:" + dslc.gen("a", max_tokens={tokens}, ignore_eos=True)
    s += f"{{tool(s['a'])}}" + dslc.gen("b", max_tokens=4)

engine = dslc.Engine()
{end}
sys.exit(7)
"""
ENDS = {
    "after a batch": "program.run_batch([{'i': i} for i in range(4)], backend=engine, compiled=False)",
    "in the middle of a stream": "state = program.run(i=1, stream=True, backend=engine); next(state.text_iter())",
    "in the middle of a batch": (
        "states = program.run_batch([{'i': i} for i in range(4)], backend=engine, compiled=False, generator_style=True)"
        "; next(states)"
    ),
}


@pytest.mark.parametrize("end", [*ENDS, "after a batch"])  # whether a thread is just waking up is chance
def test_the_process_ends_with_its_own_exit_code(end):
    for sleep in (0.0, 0.02):
        code = PROGRAM.format(sleep=sleep, tokens=400 if "stream" in end else 8, end=ENDS[end])
        done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=120)
        assert (done.returncode, done.stderr) == (7, "")


def test_a_function_that_never_returns_does_not_keep_the_process():
    code = PROGRAM.format(sleep=3600, tokens=4, end=ENDS["in the middle of a stream"])
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 7 and time.monotonic() - began < 100
