"""Compiling in a process of its own, which is killed when it takes too long or too much.

The caller's thread waits; other threads go on undisturbed, for the work holds neither their interpreter nor, as its
priority is lower, their processor. Up to MAX_WORKERS processes stay for the next constraint.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import os
import pickle
import struct
import subprocess
import sys
import threading
import time
from typing import IO, Any

from ...core.constraint import Constraint, ConstraintKind
from ...core.errors import ConstraintError, ErrorInfo

COMPILE_SECONDS = 10.0
COMPILE_BYTES = 2 * 2**30
MAX_WORKERS = 2
_START_SECONDS = 30.0
_NICENESS = 10

_idle: list[Worker] = []
_slots = threading.BoundedSemaphore(MAX_WORKERS)
_lock = threading.Lock()


class WorkerUnavailable(Exception):
    """No process can be started here."""


class Worker:
    """A process that compiles one constraint after the other. Raises WorkerUnavailable if it does not come up."""

    def __init__(self, max_bytes: int) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        self.max_bytes = max_bytes
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-c", f"from {__name__} import serve; serve({max_bytes})"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment,
            )  # fmt: skip
        except OSError as error:
            raise WorkerUnavailable(str(error)) from None
        try:
            self._answer(_START_SECONDS)
        except (EOFError, TimeoutError):
            raise WorkerUnavailable("the process ended before it was ready") from None

    def compile(self, constraint: Constraint, seconds: float) -> bytes:
        """The automaton's bytes. Raises ConstraintError; TimeoutError or EOFError if the process is of no more use."""
        ok, answer = self._answer(seconds, (constraint.kind, constraint.source, constraint.options))
        if ok:
            made: bytes = answer
            return made
        raise answer.exception()

    def _answer(self, seconds: float, question: object = None) -> Any:
        assert self.process.stdin is not None and self.process.stdout is not None
        timer = threading.Timer(seconds, self.process.kill)
        timer.daemon = True
        timer.start()
        started = time.monotonic()
        try:
            if question is not None:
                _send(self.process.stdin, pickle.dumps(question))
            return pickle.loads(_receive(self.process.stdout))
        except (EOFError, BrokenPipeError):
            self.close()
            raise TimeoutError if time.monotonic() - started >= seconds else EOFError from None
        finally:
            timer.cancel()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):  # what it had not read yet
                    pipe.close()


def compile_apart(constraint: Constraint, seconds: float | None = None, max_bytes: int | None = None) -> bytes:
    """The automaton of a constraint, made in another process, as `persist` saves it.

    Raises ConstraintError, also beyond the limits.
    """
    seconds = COMPILE_SECONDS if seconds is None else seconds
    max_bytes = COMPILE_BYTES if max_bytes is None else max_bytes
    with _slots:
        with _lock:
            worker = next((w for w in _idle if w.max_bytes == max_bytes), None)
            if worker is not None:
                _idle.remove(worker)
        if worker is None or worker.process.poll() is not None:
            worker = Worker(max_bytes)
        try:
            data = worker.compile(constraint, seconds)
        except TimeoutError:
            raise ConstraintError(
                f"takes more than {seconds:g} s to compile; make it smaller or lower its bounds",
                field=constraint.kind,
            ) from None
        except EOFError:
            raise ConstraintError(
                f"takes more than {max_bytes >> 20} MiB to compile; make it smaller or lower its bounds",
                field=constraint.kind,
            ) from None
        except ConstraintError:
            _keep(worker)
            raise
        except BaseException:
            worker.close()
            raise
        _keep(worker)
    return data


def _keep(worker: Worker) -> None:
    with _lock:
        _idle.append(worker)


def stop_workers() -> None:
    """End the processes that wait for work."""
    with _lock:
        workers = _idle[:]
        _idle.clear()
    for worker in workers:
        worker.close()


atexit.register(stop_workers)


def _send(pipe: IO[bytes], data: bytes) -> None:
    pipe.write(struct.pack("<Q", len(data)) + data)
    pipe.flush()


def _receive(pipe: IO[bytes]) -> bytes:
    head = pipe.read(8)
    if len(head) < 8:
        raise EOFError
    (size,) = struct.unpack("<Q", head)
    data = pipe.read(size)
    if len(data) < size:
        raise EOFError
    return data


def serve(max_bytes: int) -> None:
    """The other process: compile what comes in until the pipe closes, or memory runs out."""
    pipe_out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # prints do not come between
    os.nice(_NICENESS)
    importlib.import_module(".compile", __package__)  # what it takes itself does not count
    _limit(max_bytes)
    _send(pipe_out, pickle.dumps("ready"))
    try:
        while True:
            _send(pipe_out, pickle.dumps(_compiled(*pickle.loads(_receive(sys.stdin.buffer)))))
    except EOFError:
        return
    except MemoryError:
        os._exit(1)


def _compiled(kind: ConstraintKind, source: str, options: tuple[tuple[str, str], ...]) -> tuple[bool, object]:
    """(whether it went well, the automaton's bytes or the error)"""
    from .compile import build_automaton
    from .persist import NotSaved, automaton_to_bytes

    try:
        return True, automaton_to_bytes(build_automaton(Constraint(kind, source, options)))
    except ConstraintError as error:
        return False, ErrorInfo.of(error)
    except NotSaved as error:
        return False, ErrorInfo.of(ConstraintError(str(error), field=kind))


def _limit(max_bytes: int) -> None:
    try:
        import resource
    except ImportError:  # no such limits on this system
        return
    now = int(resource.getrlimit(resource.RLIMIT_AS)[1])
    limit = max_bytes if now == resource.RLIM_INFINITY else min(max_bytes, now)
    resource.setrlimit(resource.RLIMIT_AS, (limit, now))
