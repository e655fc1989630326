"""Runs written down, run again without a model, and compared.

    with dslc.record("run.jsonl"):                # or program.run(..., record="run.jsonl")
        program.run(question="...", backend=engine)

    program.run(question="...", backend=dslc.replay("run.jsonl"))               # no model: as recorded, or an error
    program.run(question="...", backend=dslc.replay("run.jsonl", live=engine))  # after an edit: makes what changed

The file is a journal (`compiler.journal`: generations by what they depend on, host results by their call), so `dslc run
--replay` reads it too. Beside that it holds, for reading: each run's program as IR, its seed and arguments, and each
generation's prompt.
"""

from __future__ import annotations

import contextvars
import dataclasses
import difflib
import fcntl
import json
import os
import threading
import weakref
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..compiler.around import Around
from ..compiler.journal import FORMAT, VERSION, HostJournal, Journal, Record, encode_value, key_of
from ..compiler.printer import print_program
from ..core.backend import Capabilities, Counters
from ..core.errors import DslcError, ErrorInfo, ProgramError
from ..core.events import Event, Failed, Finished
from ..core.wire import converted
from .scripted import ScriptedTokenizer

if TYPE_CHECKING:
    from ..core.backend import Backend, EventSink
    from ..core.request import GenRequest
    from ..core.text.tokenizer import Tokenizer
    from .function import Function
    from .options import RunOptions

BUILT_IN = Path(__file__).parent.parent / "runtime" / "builtin" / "dslc_tiny"


class Keeper(Around):
    """A backend that is told of the runs on it: what records them, and what replays them."""

    def __init__(self, inner: Backend) -> None:
        super().__init__(inner)
        self._num_instances: Counter[tuple[str, int]] = Counter()
        self._keeping = threading.Lock()

    def opened(self, function: Function, options: RunOptions, is_unseeded: bool) -> RunOptions:
        """A run of a program begins with these options; gives those that it is to have."""
        return options

    def begun(self, function: Function, instance: int, arguments: Mapping[str, Any]) -> HostJournal | None:
        """An instance of it begins; what keeps the results of its host calls."""
        with self._keeping:
            number = self._num_instances[function.__name__, instance]
            self._num_instances[function.__name__, instance] += 1
        name = f"{function.__name__}#{number}" if number else function.__name__
        return self._hosts(name, instance)

    def _hosts(self, program: str, instance: int) -> HostJournal | None:
        raise NotImplementedError


# -- recording


class Recording:
    """A file that runs are written to, line by line; open only while a line is written."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Begin the file anew. Raises ProgramError for a file that holds something else than a recording."""
        if not isinstance(path, (str, os.PathLike)):
            raise ProgramError(f"a recording is named by its path, not {path!r}")
        self.path = Path(path)
        if self.path.is_file() and self.path.stat().st_size and not _is_recording(self.path):
            raise ProgramError(f"{self.path} holds something else, which would be lost; name another file")
        self.path.write_bytes(b"")
        self._lock = threading.Lock()
        self._made_for: dict[str, Any] | None = None
        self._around: weakref.WeakKeyDictionary[Backend, Recorded] = weakref.WeakKeyDictionary()

    def around(self, backend: Backend) -> Recorded:
        """The backend with everything that runs on it recorded. Raises ProgramError for a second kind of backend."""
        with self._lock:
            known = self._around.get(backend)
            if known is None:
                made_for = _made_for(backend)
                if self._made_for is None:
                    self._made_for = made_for
                    self._write({"format": FORMAT, "version": VERSION, "seed": None, "made_for": made_for})
                elif made_for != self._made_for:
                    raise ProgramError(f"{self.path}: one recording is of one backend; record the other elsewhere")
                known = self._around[backend] = Recorded(backend, self)
                for key, value in known.hosts.hosts.items():
                    self._write({"host": key, "value": encode_value(value)})
            return known

    def write(self, entry: Mapping[str, Any]) -> None:
        """One line, handed to the system before this returns."""
        with self._lock:
            self._write(entry)

    def _write(self, entry: Mapping[str, Any]) -> None:
        with self.path.open("ab") as file:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX)
            file.write(json.dumps(entry, ensure_ascii=False).encode() + b"\n")


def _is_recording(path: Path) -> bool:
    with path.open("rb") as file:
        return f'"{FORMAT}"'.encode() in file.read(64)


def _load(path: Path) -> Record:
    """What a recording holds. Raises ProgramError where there is none."""
    if not path.is_file():
        raise ProgramError(f"{path}: there is no such recording")
    record = Record.load(path)
    if not record.num_bytes:
        raise ProgramError(f"{path}: nothing is recorded in it")
    return record


class Recorded(Keeper):
    """A backend around another whose results are written to a recording."""

    def __init__(self, inner: Backend, recording: Recording) -> None:
        super().__init__(inner)
        self.recording = recording
        self.hosts = inner.hosts if isinstance(inner, Replay) else Record()  # results that are not made again
        self._programs: set[str] = set()

    def opened(self, function: Function, options: RunOptions, is_unseeded: bool) -> RunOptions:
        if isinstance(self.inner, Keeper):
            options = self.inner.opened(function, options, is_unseeded)
        entry: dict[str, Any] = {"program": function.__name__, "seed": options.seed}
        try:
            ir = print_program(function.compile())
        except DslcError:
            ir = ""  # not to be traced: its body runs as it is
        if ir not in self._programs:
            self._programs.add(ir)
            entry["ir"] = ir
        self.recording.write({"run": entry})
        return options

    def begun(self, function: Function, instance: int, arguments: Mapping[str, Any]) -> HostJournal | None:
        given = {name: _readable(value) for name, value in arguments.items()}
        entry = {"program": function.__name__, "instance": instance, "arguments": given}
        self.recording.write({"instance": entry})
        return super().begun(function, instance, arguments)

    def _hosts(self, program: str, instance: int) -> HostJournal:
        file: Any = self.recording
        return HostJournal(self.hosts, file, program, instance)

    def submit(self, requests: Sequence[GenRequest], sink: EventSink) -> None:
        """Hand the requests on, and write their results down."""
        known = {request.id: request for request in requests}

        def hear(event: Event) -> None:
            if isinstance(event, Finished):
                request = known[event.request_id]
                entry = {
                    "gen": key_of(request, self.tokenizer),
                    "finished": _plain(event),
                    "asked": _asked(request, self.tokenizer),
                }
                self.recording.write(entry)
            sink(event)

        self.inner.submit(requests, hear)


_current: contextvars.ContextVar[Recording | None] = contextvars.ContextVar("dslc_recording", default=None)


class record:
    """`with dslc.record(path):` writes every run in the block to a file, anew."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = path
        self._token: contextvars.Token[Recording | None] | None = None

    def __enter__(self) -> Recording:
        recording = Recording(self._path)
        self._token = _current.set(recording)
        return recording

    def __exit__(self, *error: object) -> None:
        assert self._token is not None
        _current.reset(self._token)


def recorded(backend: Backend, given: Any) -> Backend:
    """The backend of a run: recorded where `run(record=...)` or `with dslc.record(...)` wants that."""
    recording = _current.get() if given is None else given if isinstance(given, Recording) else Recording(given)
    return backend if recording is None else recording.around(backend)


def _asked(request: GenRequest, tokenizer: Tokenizer | None) -> dict[str, Any]:
    """What a generation was asked for, to be read by people and by `diff`."""
    prompt = ""
    ids: list[int] = []
    for segment in request.segments:
        prompt += segment.text
        if segment.ids and tokenizer is not None:
            prompt += tokenizer.decode(segment.ids, skip_special_tokens=False)
            ids += segment.ids
    asked: dict[str, Any] = {"prompt": prompt, "prompt_ids": ids, "seed": request.sampling.seed}
    if request.origin is not None:
        asked["origin"] = dataclasses.astuple(request.origin)
    if request.constraint is not None:
        asked["constraint"] = repr(request.constraint)
    if request.score is not None and tokenizer is not None:
        asked["choices"] = [tokenizer.decode(ids, skip_special_tokens=False) for ids in request.score.sequences]
    return asked


def _plain(value: Any) -> Any:
    import msgspec

    return msgspec.to_builtins(value)


def _readable(value: Any) -> Any:
    try:
        return encode_value(value)
    except TypeError:
        return {"repr": repr(value)}


def _made_for(backend: Backend) -> dict[str, Any]:
    able = backend.capabilities
    config: Any = getattr(backend, "config", None)
    info: Any = getattr(backend, "model_info", None)
    tokenizer = backend.tokenizer
    source: Any = None
    if config is not None:
        source = config.tokenizer_path or config.model_path or "built-in"
    elif info is not None:
        source = info.get("tokenizer_path") or info.get("model_path")
    elif isinstance(tokenizer, ScriptedTokenizer):
        source = "scripted"
    return {
        "model": (config.model_path or "built-in") if config is not None else able.name,
        "tokenizer": tokenizer.hash if tokenizer is not None else None,
        "dtype": config.dtype if config is not None else None,
        "deterministic": config.deterministic if config is not None else None,
        "tokenizer_path": source,
        "capabilities": {**_plain(able), "constraints": sorted(able.constraints)},
    }


# -- replaying


class Replay(Journal, Keeper):
    """A backend that gives what was recorded: without a model, or with one for what was not. See `replay`.

    With a model host functions are called again: an edit may have changed what they do.
    """

    def __init__(self, inner: Backend, record: Record) -> None:
        Keeper.__init__(self, inner)
        Journal.__init__(self, inner, record)
        self.hosts = record if isinstance(inner, _NoModel) else Record()
        self._seeds: dict[str, deque[int]] = {}
        self._results: dict[str, deque[Finished]] = {}  # equal generations in their order: they may differ in the cache
        for line in record.notes:
            if "run" in line:
                self._seeds.setdefault(line["run"]["program"], deque()).append(line["run"]["seed"])
            elif "gen" in line:
                self._results.setdefault(line["gen"], deque()).append(_finished(line["finished"]))

    def submit(self, requests: Sequence[GenRequest], sink: EventSink) -> None:
        """Answer what is recorded; the rest is for the model, if there is one."""
        for request in requests:
            with self._keeping:
                key = key_of(request, self.tokenizer)
                results = self._results.get(key)
                if results:
                    self.record.gens[key] = results.popleft() if len(results) > 1 else results[0]
                Journal.submit(self, [request], sink)

    def opened(self, function: Function, options: RunOptions, is_unseeded: bool) -> RunOptions:
        """A run that is given no seed has that of the recorded one."""
        seeds = self._seeds.get(function.__name__)
        seed = seeds.popleft() if seeds else self.record.seed
        if seed is None or not is_unseeded:
            return options
        return dataclasses.replace(options, seed=seed, _merged={})

    def _hosts(self, program: str, instance: int) -> HostJournal:
        return HostJournal(self.hosts, None, program, instance)


class _NoModel:
    """In place of a model: what is not recorded fails."""

    def __init__(self, path: Path, capabilities: Capabilities, tokenizer: Tokenizer | None) -> None:
        self.path = path
        self.capabilities = capabilities
        self.tokenizer = tokenizer
        self._news = threading.Condition()
        self._is_closed = False

    def submit(self, requests: Sequence[GenRequest], sink: EventSink) -> None:
        for request in requests:
            error = ProgramError(
                f"{self.path} holds no generation with this prompt, these options and this seed; "
                "dslc.replay(path, live=...) makes what is not there (functions that an interpreted body calls are "
                "called anew: what they give may be another prompt)"
            )
            sink(Failed(request.id, ErrorInfo.of(error)))

    def wait(self, ready: Callable[[], bool], timeout: float | None = None) -> bool:
        with self._news:
            self._news.wait_for(lambda: ready() or self._is_closed, timeout)
        return ready()

    def abort(self, request_ids: Sequence[str]) -> None:
        """Nothing is in flight."""

    def pin(self, ids: Sequence[int], cache_salt: str = "") -> Any:
        return _NoPin()

    def unpin(self, handle: Any) -> None:
        """Nothing is held."""

    def counters(self) -> Counters:
        return Counters()

    def close(self) -> None:
        with self._news:
            self._is_closed = True
            self._news.notify_all()


class _NoPin:
    num_tokens = 0


def _finished(data: Any) -> Finished:
    return converted(data, Finished)


def replay(
    path: str | os.PathLike[str], live: Backend | None = None, tokenizer: Tokenizer | str | None = None
) -> Replay:
    """A backend that gives what a recording (or a journal of `dslc run`) holds, byte for byte, without a model.

    A run on it that is given no seed has the recorded one. What is not recorded raises ProgramError, or is made by
    `live`. `tokenizer` is that of the recording, where it is not found where it was. Raises ProgramError for a file
    that is no recording, or another tokenizer.
    """
    file = Path(path)
    record = _load(file)
    made_for = record.made_for
    if live is not None:
        found = live.tokenizer
        if (found.hash if found is not None else None) != made_for.get("tokenizer"):
            raise ProgramError(f"{file}: recorded with another tokenizer than that of {live.capabilities.name!r}")
        return Replay(live, record)
    able = made_for.get("capabilities") or {"name": "replay", "scoring": True, "logprobs": True, "token_ids": True}
    known: Tokenizer | None = None
    if made_for.get("tokenizer") is not None:
        known = _tokenizer(file, tokenizer, made_for.get("tokenizer_path") or made_for.get("model"))
        if known.hash != made_for["tokenizer"]:
            raise ProgramError(f"{file}: recorded with another tokenizer; give its folder as tokenizer=")
    capabilities = converted({**able, "kv_tokens": None}, Capabilities)
    return Replay(_NoModel(file, capabilities, known), record)


def _tokenizer(file: Path, given: Tokenizer | str | None, path: Any) -> Tokenizer:
    if given is not None and not isinstance(given, str):
        return given
    if given is None and path == "scripted":
        return ScriptedTokenizer()
    from ..core.text.load import load_tokenizer

    try:
        return load_tokenizer(given or (BUILT_IN if path == "built-in" else path))
    except DslcError as error:
        raise ProgramError(f"{file}: its tokenizer is not to be had: {error}; give its folder as tokenizer=") from None


# -- reading


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """One generation of a recording, in the order in which they ended. `place`: its program, instance and stream, and
    how many came before it there. `output` is its text, or the log-prob of each choice."""

    place: tuple[str, int, str, int]
    key: str
    prompt: str
    output: str
    num_tokens: int
    choices: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        program, instance, stream, number = self.place
        kind = "select" if self.choices else "gen"
        return f"{program}[{instance}] {kind} {number + 1}" + (f" of branch {stream}" if stream != "0" else "")


def steps(path: str | os.PathLike[str]) -> list[Step]:
    """The generations of a recording. Raises ProgramError for a file that is none."""
    counts: Counter[tuple[str, int, str]] = Counter()
    found: list[Step] = []
    for line in _notes(path):
        if "gen" not in line:
            continue
        asked, finished = line["asked"], line["finished"]
        program, _, instance, stream = asked.get("origin", ("", -1, 0, "0"))
        number = counts[program, instance, stream]
        counts[program, instance, stream] += 1
        choices = tuple(asked.get("choices", ()))
        outputs = [output["text"] for output in finished["outputs"]]
        if choices:
            means = [sum(scores) / len(scores) for scores in finished["scores"]]
            outputs = [", ".join(f"{c!r} {m:.3f}" for c, m in zip(choices, means, strict=True))]
        tokens = sum(len(output["token_ids"]) for output in finished["outputs"])
        place = (program, instance, stream, number)
        found.append(Step(place, line["gen"], asked["prompt"], " | ".join(outputs), tokens, choices))
    return found


def diff(old: str | os.PathLike[str], new: str | os.PathLike[str]) -> Iterator[str]:
    """What differs between two recordings, as lines: the programs' IR, then generation by generation."""
    first, second = _irs(old), _irs(new)
    for name in dict.fromkeys((*first, *second)):
        before, after = first.get(name, ""), second.get(name, "")
        lines = difflib.unified_diff(
            before.splitlines(), after.splitlines(), f"{name} (old)", f"{name} (new)", lineterm=""
        )
        yield from lines
    known = {step.place: step for step in steps(old)}
    keys = {step.key for step in known.values()}
    made, total = 0, 0
    for step in steps(new):
        total += 1
        made += step.key not in keys
        before_step = known.pop(step.place, None)
        if before_step is None:
            yield f"{step.name}: only in the new one: {step.output!r}"
            continue
        if before_step.prompt != step.prompt:
            yield f"{step.name}: {_change('prompt', before_step.prompt, step.prompt)}"
        if before_step.output != step.output:
            yield f"{step.name}: {_change('output', before_step.output, step.output)}"
    for step in known.values():
        yield f"{step.name}: only in the old one: {step.output!r}"
    if made:
        yield f"{made} of {total} generations of the new one are not in the old one: a replay makes only these"


def _change(what: str, before: str, after: str, shown: int = 60) -> str:
    same = next(
        (i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), min(len(before), len(after))
    )
    return f"{what} from character {same}: {before[same : same + shown]!r} -> {after[same : same + shown]!r}"


def _irs(path: str | os.PathLike[str]) -> dict[str, str]:
    return {line["run"]["program"]: line["run"]["ir"] for line in _notes(path) if "ir" in line.get("run", {})}


def _notes(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    return _load(Path(path)).notes
