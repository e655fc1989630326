"""What is kept between processes: the folder, and the automata in it.

The folder is `$DSLC_CACHE_DIR`, else `dslc` in the user's cache folder; DSLC_CACHE_DIR=off keeps nothing.
"""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from pathlib import Path

OFF = ("", "0", "off", "none")
MAX_STORED_BYTES = 256 * 2**20

_MAGIC = b"dslc automaton\n"
_log = logging.getLogger(__name__)


def cache_folder() -> Path | None:
    """The folder, which may not exist yet; None if DSLC_CACHE_DIR switches it off (off, none, 0 or empty)."""
    given = os.environ.get("DSLC_CACHE_DIR")
    if given is not None:
        return None if given.strip().lower() in OFF else Path(given).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "dslc"


class Store:
    """Byte strings by name in a folder, least recently used out first. Safe for several processes at once.

    A file is written aside and renamed, and holds a checksum: a damaged one is said in the log, removed, and counts as
    not there. A folder that cannot be written to is said once, and then does without.
    """

    def __init__(self, folder: Path, max_bytes: int = MAX_STORED_BYTES) -> None:
        self.folder = folder
        self.max_bytes = max_bytes
        self._is_broken = False

    def _path(self, name: str) -> Path:
        return self.folder / f"{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:40]}.bin"

    def get(self, name: str) -> bytes | None:
        path = self._path(name)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            self._give_up(error)
            return None
        digest, payload = data[len(_MAGIC) : len(_MAGIC) + 32], data[len(_MAGIC) + 32 :]
        if not data.startswith(_MAGIC) or hashlib.sha256(payload).digest() != digest:
            _log.warning("%s is damaged: it is removed, and the constraint compiled again", path)
            self.drop(name)
            return None
        try:
            os.utime(path)
        except OSError:  # another process has just removed it; the data is here
            _log.debug("%s went away", path)
        return payload

    def put(self, name: str, payload: bytes) -> None:
        if self._is_broken or len(payload) > self.max_bytes // 4:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self.folder, prefix=".", suffix=".part", delete=False) as part:
                part.write(_MAGIC + hashlib.sha256(payload).digest() + payload)
            Path(part.name).replace(self._path(name))
            self._shrink()
        except OSError as error:
            self._give_up(error)

    def drop(self, name: str) -> None:
        try:
            self._path(name).unlink(missing_ok=True)
        except OSError as error:
            self._give_up(error)

    def _shrink(self) -> None:
        files = []
        for path in self.folder.iterdir():
            if path.suffix in (".bin", ".part"):
                try:
                    found = path.stat()
                except FileNotFoundError:  # removed or renamed by another process
                    continue
                files.append((found.st_mtime, found.st_size, path))
        total = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if total <= self.max_bytes:
                break
            path.unlink(missing_ok=True)
            total -= size

    def _give_up(self, error: OSError) -> None:
        if not self._is_broken:
            _log.warning("constraints are not kept in %s: %s", self.folder, error)
        self._is_broken = True
