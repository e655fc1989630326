"""Values from plain data, in many threads at once."""

import subprocess
import sys

import msgspec
import pytest

from dslc.core.events import Finished, FinishReason, Output
from dslc.core.request import GenRequest, LogprobWish, Segment, decode, encode
from dslc.core.wire import converted, decoded

REQUEST = GenRequest(id="r", segments=(Segment(ids=(1, 2)), Segment(text="a")), logprobs=LogprobWish(top=2))
FINISHED = Finished("r", (Output(0, "a", (1,), (1,), "", FinishReason("stop", 2)),), 1, 0, 5, 0.0, 0.5, 1.0)


@pytest.mark.parametrize("value", [REQUEST, FINISHED], ids=["request", "event"])
def test_values_come_back_as_they_were(value):
    assert decoded(msgspec.msgpack.encode(value), type(value)) == value
    assert converted(msgspec.to_builtins(value), type(value)) == value


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match=r"\$\.id"):
        decode(encode(REQUEST).replace(b"\xa2id\xa1r", b"\xa2id\x05"))
    with pytest.raises(ValueError, match=r"\$\.num_prompt_tokens"):
        converted({**msgspec.to_builtins(FINISHED), "num_prompt_tokens": "1"}, Finished)


# Under tracemalloc the first look at a class takes longer than a thread's turn: without the lock this crashes.
FIRST_USE = """
import threading, tracemalloc
from dslc.core.events import Finished
from dslc.core.request import GenRequest, Segment, decode, encode
from dslc.core.wire import converted

data, request = encode(GenRequest(id="a", segments=(Segment(ids=(1,)),))), []
event = dict(request_id="a", outputs=[], num_prompt_tokens=1, num_cached_tokens=0, seed=1, queued_at=0.0,
             first_token_at=0.0, finished_at=0.0)
barrier = threading.Barrier(16)
tracemalloc.start()

def use(number):
    barrier.wait()
    request.append(decode(data) if number % 2 else converted(event, Finished))

threads = [threading.Thread(target=use, args=(number,)) for number in range(16)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert len(request) == 16
"""


def test_threads_that_meet_a_class_at_once():
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", FIRST_USE], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
