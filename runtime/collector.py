"""The garbage collector beside a stream.

A full collection goes through every object of the process, which beside torch takes 0.1 s and more: no stream goes on
meanwhile. So while an engine has a thread of its own, what was there when the first one began is left out.
"""

from __future__ import annotations

import contextlib
import gc
import threading
from collections.abc import Iterator

_lock = threading.Lock()
_num_within = 0
_is_ours = False  # whether the objects that are left out were left out here, and not by the user


@contextlib.contextmanager
def without_old_objects() -> Iterator[None]:
    """Within, full collections skip the objects that existed when the first thread came in, and are short.

    Those of them that become garbage in cycles meanwhile are kept until the last one leaves.
    """
    global _num_within, _is_ours
    with _lock:
        _num_within += 1
        if _num_within == 1 and not gc.get_freeze_count():
            gc.collect(1)  # what is young, and garbage by now
            gc.freeze()
            _is_ours = True
    try:
        yield
    finally:
        with _lock:
            _num_within -= 1
            if not _num_within and _is_ours:
                gc.unfreeze()
                _is_ours = False
