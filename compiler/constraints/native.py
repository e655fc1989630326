"""What is written in C: the walk over the vocabulary (`walk.c`, `frames.c`) and what makes automata (`automata.c`,
`determinise.c`).

Built once per machine with the C compiler that is there, and loaded. It is an accelerator only: without a compiler, or
with DSLC_NATIVE=0, Python does the same, slower; the tests hold the two against each other.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ...core.cache_folder import cache_folder
from ...core.native_build import build, is_switched_off

_log = logging.getLogger(__name__)
_SOURCES = [Path(__file__).with_name(name) for name in ("walk.c", "frames.c", "automata.c", "determinise.c")]
_HEADER = Path(__file__).with_name("walk.h")
_FLAGS = ("-O2", "-shared", "-fPIC", "-std=gnu11")

_P, _I32, _I64 = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64
RESOLVE = ctypes.PYFUNCTYPE(_I64, _I64, _I64)
STEP = ctypes.PYFUNCTYPE(_I64, _I64, _I64)

# Called without the lock, for they may take long:
_LONG = ("distances", "product_new", "canonical", "subsets", "words_automaton")
_SIGNATURES: dict[str, tuple[object, list[object]]] = {
    "trie_new": (_P, [_I32, _P, _P, _P, _P, ctypes.c_int, _I32]),
    "trie_free": (None, [_P]),
    "dfa_new": (_P, [_I32, _I32, _I32, _P, _P, _P, _P, _P, _P, _I32, _I32]),
    "dfa_live": (None, [_I32, _I32, _I32, _P, _P, _P]),
    "dfa_free": (None, [_P]),
    "dfa_freedom": (_I32, [_P, _I32]),
    "closure_row": (None, [_P, _P, _P, _I32]),
    "dfa_mask": (_I32, [_P, _P, _I64]),
    "dfa_states": (None, [_P, _P, _I64, _P]),
    "distances": (None, [_I32, _I32, _P, _P, _P, _P]),
    "product_new": (_P, [_I32, _P, _P, _I32, _I32, ctypes.c_int, ctypes.c_int, _I64]),
    "product_count": (_I64, [_P]),
    "product_read": (None, [_P, _I32, _P, _P, _P]),
    "product_free": (None, [_P]),
    "canonical": (_I32, [_I32, _I32, _P, _P, _I32, _I32, _P, _I64, _P, _P, _P, _P]),
    "texts_automaton": (_I32, [_I32, _P, ctypes.c_char_p, _P, _I32, _I32, _I64, _P, _P]),
    "subsets": (_P, [_I32, _I32, _I32, _P, _P, _P, _P, _I64, _I64, _I64, _P, _P]),
    "words_automaton": (_P, [_I64, _P, _P, _P, _I32, _I64, _P]),
    "table_states": (_I32, [_P]),
    "table_read": (None, [_P, _P, _P]),
    "table_free": (None, [_P]),
    "speller_from_pattern": (_I32, [_I32, _I32, _P, _P, _P, _P]),
    "names_new": (_P, [_I32, _P, ctypes.c_char_p]),
    "names_free": (None, [_P]),
    "machine_new": (_P, [RESOLVE, STEP]),
    "machine_free": (None, [_P]),
    "machine_mask": (_I64, [_P, _P, _I64, ctypes.c_int]),
    "machine_explore": (_I64, [_P, _I64, _I64, _I64]),
    "step_bytes": (_I64, [_P, _I64, ctypes.c_char_p, _I32]),
    "define_python": (None, [_P, _I64]),
    "define_moves": (None, [_P, _I64, _I32, ctypes.c_char_p, _P]),
    "define_leaf": (None, [_P, _I64, ctypes.c_int, _P, _I32, _P]),
    "define_name": (None, [_P, _I64, _P, ctypes.c_char_p, _I32]),
    "define_open_name": (None, [_P, _I64, _P, _I32, _P, _I32, _P]),
    "reader_new": (_P, [_P, _I32, _P, _I64]),
    "reader_free": (None, [_P]),
    "stack_new": (None, [_P, _P, _I32, _I32, ctypes.c_char_p, _I32, ctypes.c_char_p]),
    "stack_push": (_I64, [_P, _I32, _I32, _I64, _I64]),
    "stack_read": (None, [_P, _I64, _P]),
    "stack_text": (_I32, [_P, _I32, ctypes.c_char_p]),
    "stack_reader": (_I32, [_P, _P]),
    "stack_value": (None, [_P, _I32, _I32, _I32, _I32, _I32]),
    "stack_object": (_I32, [_P, _I32, _P, ctypes.c_char_p, ctypes.c_char_p, _P, _P, _I32]),
    "stack_array": (_I32, [_P, _I32, _I32, _I32, _I32, _P, ctypes.c_char_p]),
}


@cache
def library() -> ctypes.PyDLL | None:
    """The loaded walk; None if it is switched off or cannot be built here (`why_not` says why)."""
    if is_switched_off():
        _reason.append("switched off by DSLC_NATIVE=0")
        return None
    folder = cache_folder()
    try:
        with contextlib.ExitStack() as scratch:
            if folder is None:  # nothing is kept: what is loaded needs its file no more
                folder = Path(scratch.enter_context(tempfile.TemporaryDirectory(prefix="dslc-")))
            path = str(build("walk", _SOURCES, _FLAGS, folder, included=[_HEADER]))
            made = ctypes.PyDLL(path)  # keeps the interpreter's lock: a walk is short and may call back
            unlocked = ctypes.CDLL(path)
            for name in _LONG:
                setattr(made, name, getattr(unlocked, name))
    except (OSError, subprocess.SubprocessError) as error:
        _reason.append(f"{type(error).__name__}: {error}")
        _log.warning("masks are computed in Python, slower: %s", _reason[-1])
        return None
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(made, name)
        function.restype, function.argtypes = result, arguments
    return made


_reason: list[str] = []


_COPIED = 1 << 16  # bytes


def given(array: np.ndarray[Any, Any]) -> bytes | int:
    """An array as an argument that is read while it is kept. Small ones go as bytes, which is ten times quicker."""
    return array.tobytes() if array.nbytes <= _COPIED else int(array.ctypes.data)


def written(array: np.ndarray[Any, Any]) -> int:
    """An array as an argument that is written to."""
    return ctypes.addressof(ctypes.c_char.from_buffer(array.data)) if array.nbytes else 0


def why_not() -> str | None:
    """Why the Python walks are used; None if the compiled one is."""
    return None if library() is not None else _reason[-1]
