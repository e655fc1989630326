"""A run's journal: each finished generation and host result, a line each, so that a run can go on where it was cut.

    journal = Journal(engine, Record.load(path), path)     # `dslc run --journal FILE`, and `--replay FILE`
    program.run_batch(rows, backend=journal)

A recorded generation is used again when its prompt ids, sampling options, seed, constraint, choices and log-prob wish
are what they were (a greedy one: whatever the seed); nothing else is looked at, so after an edit everything before the
edit is there and what follows is generated. Host results are known by the call: instance, function, arguments, and how
many equal calls came before it. The file holds JSON; nothing is executed on loading.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import ProgramError
from ..core.events import Event, Finished
from ..core.wire import converted
from .around import Around, prompt_ids

if TYPE_CHECKING:
    from ..core.backend import Backend, EventSink
    from ..core.request import GenRequest
    from ..core.text.tokenizer import Tokenizer

FORMAT, VERSION = "dslc.journal", 1


@dataclass
class Record:
    """What a journal holds: the run's seed, what it was made for, results of gens and selects, and of host calls."""

    seed: int | None = None
    made_for: Mapping[str, Any] = field(default_factory=dict)
    gens: dict[str, Finished] = field(default_factory=dict)
    hosts: dict[str, Any] = field(default_factory=dict)
    num_bytes: int = 0  # of the whole lines
    notes: list[dict[str, Any]] = field(default_factory=list)  # of a recording: what people read

    @classmethod
    def load(cls, path: Path) -> Record:
        """The record in a file; empty if it is not there. A last line without its end is none: the run was cut there.

        Raises ProgramError naming the line that is no line of a journal.
        """
        record = cls()
        data = path.read_bytes() if path.exists() else b""
        record.num_bytes = data.rfind(b"\n") + 1
        for number, line in enumerate(data[: record.num_bytes].splitlines()):
            try:
                found = json.loads(line)
                if not number:
                    if found["format"] != FORMAT or found["version"] != VERSION:
                        raise ValueError
                    record.seed, record.made_for = found["seed"], found["made_for"]
                elif "gen" in found:
                    record.gens[found["gen"]] = converted(found["finished"], Finished)
                    if "asked" in found:
                        record.notes.append(found)
                elif "run" in found or "instance" in found:
                    record.notes.append(found)
                else:
                    record.hosts[found["host"]] = decode_value(found["value"])
            except (ValueError, KeyError, TypeError):
                raise ProgramError(f"{path}:{number + 1}: not a line of a journal of dslc run") from None
        return record

    def check_made_for(self, made_for: Mapping[str, Any], path: Path) -> None:
        """Raise ProgramError where the record was made with another model or arithmetic, naming what differs."""
        for name, value in made_for.items():
            if self.gens and self.made_for.get(name) != value:
                raise ProgramError(
                    f"{path}: recorded with {name} {self.made_for.get(name)!r}, but this run has {value!r}; "
                    "name another file"
                )


class JournalFile:
    """A journal being written. Raises ProgramError where another process writes it."""

    def __init__(self, path: Path, record: Record, seed: int, made_for: Mapping[str, Any]) -> None:
        """Take the file up where `record`, loaded from it, ends."""
        self._file = path.open("ab")
        lock(self._file.fileno(), path)
        self._file.truncate(record.num_bytes)
        self._lock = threading.Lock()
        if not record.num_bytes:
            self.write({"format": FORMAT, "version": VERSION, "seed": seed, "made_for": dict(made_for)})

    def write(self, entry: Mapping[str, Any]) -> None:
        """One line, handed to the system before this returns: killing the process does not lose it."""
        line = json.dumps(entry, ensure_ascii=False).encode() + b"\n"
        with self._lock:
            self._file.write(line)
            self._file.flush()

    def close(self) -> None:
        os.fsync(self._file.fileno())
        self._file.close()


def lock(descriptor: int, path: Path) -> None:
    """Hold a file for this process until it is closed. Raises ProgramError if another one holds it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ProgramError(f"{path}: another run is writing it") from None


class Journal(Around):
    """A backend around another that answers what is recorded without asking it, and writes down what it is asked.

    `num_replayed` and `num_computed` count requests; `computed_ops` which ops the computed ones come from.
    """

    def __init__(self, inner: Backend, record: Record, file: JournalFile | None = None) -> None:
        super().__init__(inner)
        self.record = record
        self.file = file
        self.num_replayed = 0
        self.num_computed = 0
        self.computed_ops: Counter[tuple[str, int]] = Counter()
        self._counting = threading.Lock()

    def submit(self, requests: Sequence[GenRequest], sink: EventSink) -> None:
        """Answer what is known; hand on the rest and write down its results."""
        unknown: list[GenRequest] = []
        keys: dict[str, str] = {}
        replayed = 0
        for request in requests:
            key = key_of(request, self.tokenizer)
            known = self.record.gens.get(key)
            if known is not None:
                now = time.monotonic()
                replayed += 1
                sink(replace(known, request_id=request.id, queued_at=now, first_token_at=now, finished_at=now))
                continue
            unknown.append(request)
            keys[request.id] = key
        with self._counting:
            self.num_replayed += replayed
            self.num_computed += len(unknown)
            self.computed_ops.update((r.origin.program, r.origin.op) for r in unknown if r.origin is not None)

        def hear(event: Event) -> None:
            if isinstance(event, Finished) and self.file is not None:
                self.file.write({"gen": keys[event.request_id], "finished": _plain(event)})
            sink(event)

        if unknown:
            self.inner.submit(unknown, hear)


def key_of(request: GenRequest, tokenizer: Tokenizer | None) -> str:
    """What a generation depends on, as a hash. Two requests with equal keys have equal results on one engine."""
    sampling = _plain(request.sampling)
    if request.sampling.is_greedy:
        del sampling["seed"]
    prompt: Any = prompt_ids(request, tokenizer) if tokenizer is not None else [s.text for s in request.segments]
    parts = [
        prompt, sampling, _plain(request.constraint), _plain(request.score), _plain(request.logprobs), request.adapter,
        [(at, s.media.kind, s.media.digest) for at, s in enumerate(request.segments) if s.media is not None],
        request.logit_processor, request.healed, request.reasoning,
    ]  # fmt: skip
    if request.messages or request.choices:
        parts += [_plain(request.messages), request.choices]
    return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=16).hexdigest()


def _plain(value: Any) -> Any:
    import msgspec

    return msgspec.to_builtins(value)


class HostJournal:
    """The host calls of one program instance: what is recorded is not called again.

    `num_replayed` counts those. A result that JSON cannot hold exactly is not written: such a call is made again.
    """

    def __init__(self, record: Record, file: JournalFile | None, program: str, instance: int) -> None:
        self._record = record
        self._file = file
        self._name = f"{program}/{instance}"
        self._calls: Counter[str] = Counter()
        self.num_replayed = 0

    def call(self, function: str, args: Any, kwargs: Mapping[str, Any], make: Callable[[], Any]) -> Any:
        """The recorded result of this call, or `make()`'s, written down.

        What would have to be made again is not recorded: an exception, a change of what the call gets, and a call with
        an object that may be changed (`setattr`).
        """
        given = _written(args, kwargs)
        if given is None:
            return make()
        base = f"{self._name} {function} {hashlib.blake2b(given.encode(), digest_size=12).hexdigest()}"
        self._calls[base] += 1
        key = f"{base} {self._calls[base]}"
        if key in self._record.hosts:
            self.num_replayed += 1
            return self._record.hosts[key]
        value = make()
        if self._file is not None and _written(args, kwargs) == given:
            try:
                encoded = encode_value(value)
            except TypeError:
                return value
            self._file.write({"host": key, "value": encoded})
        return value


def _written(args: Any, kwargs: Mapping[str, Any]) -> str | None:
    """The arguments of a call as JSON; None where they are nothing that it can hold."""
    try:
        return json.dumps([encode_value(list(args)), encode_value(dict(kwargs))], sort_keys=True)
    except TypeError:
        return None


_TAGS: dict[type, str] = {tuple: "tuple", set: "set", frozenset: "frozenset"}


def encode_value(value: Any) -> Any:
    """A value as JSON data from which `decode_value` makes an equal one, of the same types. Raises TypeError."""
    kind = type(value)
    if value is None or kind in (str, int, bool, float):
        return value
    if kind is list:
        return [encode_value(item) for item in value]
    if kind is dict and all(type(key) is str for key in value):
        return {"dict": {key: encode_value(item) for key, item in value.items()}}
    if kind is bytes:
        return {"bytes": value.hex()}
    if kind in _TAGS:
        return {_TAGS[kind]: [encode_value(item) for item in value]}
    raise TypeError(f"a journal cannot hold a {kind.__name__}")


def decode_value(data: Any) -> Any:
    """The value in the data that `encode_value` made."""
    if isinstance(data, list):
        return [decode_value(item) for item in data]
    if not isinstance(data, dict):
        return data
    ((tag, inside),) = data.items()
    if tag == "dict":
        return {key: decode_value(item) for key, item in inside.items()}
    if tag == "bytes":
        return bytes.fromhex(inside)
    kind: Any = next(kind for kind, name in _TAGS.items() if name == tag)
    return kind(decode_value(item) for item in inside)
