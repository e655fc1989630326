"""The file of results of `dslc run --args`: a line for each row, each once, whatever interrupts the run."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import hashlib
import json
import os
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .cli_programs import CliError
from .compiler.journal import lock


class Results:
    """Rows that are done, by number, and the file that takes the others. Open until `close`.

    A result is there when its line is, with its end; a line cut off by an interruption is taken away, and its row runs
    again. The file is locked: two runs never write it at once.
    """

    def __init__(self, path: Path, run: str) -> None:
        """`run` names program, model and sampling: results of another run are not mixed with its own."""
        self.path = path
        self.run = run
        self.done: dict[int, Any] = {}  # row number -> its arguments
        self.seed: int | None = None
        try:
            self._file = path.open("a+b")
        except OSError as error:
            raise CliError(f"{path}: {error.strerror}") from None
        lock(self._file.fileno(), path)
        try:
            self._load()
        except BaseException:
            self._file.close()
            raise

    def _load(self) -> None:
        self._file.seek(0)
        data = self._file.read()
        whole = data[: data.rfind(b"\n") + 1]
        for number, line in enumerate(whole.splitlines()):
            try:
                found = json.loads(line)
                index, self.seed, run = found["index"], found["seed"], found["run"]
                self.done[index] = found["arguments"]
            except (ValueError, KeyError, TypeError):
                raise CliError(f"{self.path}:{number + 1}: not a result line of dslc run; name another file") from None
            if run != self.run:
                raise CliError(
                    f"{self.path}:{number + 1}: of another version of the program, or another model or sampling; "
                    "name another file (--journal and --replay can use again what is the same)"
                )
        self._file.truncate(len(whole))

    def check_rows(self, rows: Sequence[Mapping[str, Any]], place: Path) -> None:
        """Raise CliError where a result is there for other arguments than the row of its number has now."""
        for index, arguments in self.done.items():
            if index >= len(rows):
                raise CliError(f"{self.path}: holds a result of row {index}, but {place} has {len(rows)} rows")
            if as_json(rows[index]) != arguments:
                raise CliError(f"{place}:{index + 1}: its result in {self.path} was made for other arguments")

    def write(self, index: int, seed: int, arguments: Mapping[str, Any], found: Mapping[str, Any]) -> None:
        """A row's line, handed to the system before this returns."""
        line = {"index": index, "seed": seed, "run": self.run, "arguments": arguments, **found}
        self._file.write(json.dumps(line, ensure_ascii=False, default=plain).encode() + b"\n")
        self._file.flush()

    def close(self) -> None:
        os.fsync(self._file.fileno())
        self._file.close()


def as_json(value: Any) -> Any:
    """A value as it comes back from a file of results."""
    return json.loads(json.dumps(value, default=plain))


def plain(value: Any) -> Any:
    """A value that JSON has no form for, as one that it has: pydantic models and dataclasses as objects, sets and enums
    by what they hold, dates and the like as the text of their types, anything else as its `repr`."""
    if hasattr(value, "model_dump") and not isinstance(value, type):
        return value.model_dump(mode="json")
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: getattr(value, item.name) for item in dataclasses.fields(value)}
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, (set, frozenset)):
        return sorted(value, key=repr)
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    return str(value) if isinstance(value, (decimal.Decimal, uuid.UUID)) else repr(value)


def run_name(fingerprint: str, model: str | None, sampling: Mapping[str, Any]) -> str:
    """What results of a run depend on besides arguments and seed, as a short hash."""
    parts = [fingerprint, model or "built-in", {name: value for name, value in sampling.items() if name != "seed"}]
    return hashlib.blake2b(json.dumps(parts, sort_keys=True, default=repr).encode(), digest_size=6).hexdigest()
