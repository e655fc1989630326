"""The folder in which things are kept between processes: `$DSLC_CACHE_DIR`, else `dslc` in the user's cache folder."""

from __future__ import annotations

import os
from pathlib import Path

OFF = ("", "0", "off", "none")


def cache_folder() -> Path | None:
    """The folder, which may not exist yet; None if DSLC_CACHE_DIR switches it off (off, none, 0 or empty)."""
    given = os.environ.get("DSLC_CACHE_DIR")
    if given is not None:
        return None if given.strip().lower() in OFF else Path(given).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "dslc"
