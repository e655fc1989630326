"""`dslc steps` and `dslc diff`: recordings of runs, read one generation at a time, and compared."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any


def add_record(verbs: Any) -> None:
    parser = verbs.add_parser(
        "steps",
        help="show what a recorded run generated, step by step",
        description="Show each generation of a recording of dslc.record(...): its prompt's end and its output.",
    )
    parser.add_argument("recording", type=Path, metavar="FILE")
    parser.add_argument("--wait", action="store_true", help="wait for Enter after each")
    parser.add_argument("--whole", action="store_true", help="show whole prompts")
    parser.set_defaults(verb=_steps)
    parser = verbs.add_parser(
        "diff",
        help="compare two recorded runs",
        description="Show how two recordings of dslc.record(...) differ: programs, prompts, outputs. "
        "Exit code 1 if they do.",
    )
    parser.add_argument("old", type=Path, metavar="OLD")
    parser.add_argument("new", type=Path, metavar="NEW")
    parser.set_defaults(verb=_diff)


def _steps(arguments: argparse.Namespace) -> int:
    from .lang.record import steps

    for step in steps(arguments.recording):
        print(f"{step.name}, {step.num_tokens} tokens")
        print(f"  after {step.prompt if arguments.whole else step.prompt[-70:]!r}")
        print(f"  {step.output!r}")
        if arguments.wait and not sys.stdin.readline():
            break
    return 0


def _diff(arguments: argparse.Namespace) -> int:
    from .lang.record import diff

    lines = list(diff(arguments.old, arguments.new))
    for line in lines:
        print(line)
    return 1 if lines else 0
