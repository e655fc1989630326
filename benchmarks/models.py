"""How close every family of models is to transformers: the tables of docs/models.md.

    python benchmarks/models.py            # two minutes on one core; needs no network
    python benchmarks/models.py gemma2     # some rows

Each row is a tiny random checkpoint, made by transformers as `tests/support/families.py` says, and compared as
`tests/support/family_checks.py` does: logits of a prompt computed at once, and of chunks and single tokens in mixed
batches; and the greedy ids of 16 prompts continued together.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import torch
from support.families import FAMILIES, GENERIC, architecture_of
from support.family_checks import compare_greedy, compare_logits, runner_for
from transformers.utils.logging import disable_progress_bar

HEADER = """\
| family | architecture | runs in | at once | in parts | greedy ids |
|---|---|---|---|---|---|"""


def row(name: str) -> str:
    """A line of the table."""
    runner = runner_for(name)
    logits, greedy = compare_logits(name, runner), compare_greedy(name, runner)
    way = "transformers' code" if name in GENERIC else "C++, torch" if runner.native is not None else "torch"
    counts = f"{greedy.same} of {greedy.clear} clear of {greedy.total}"
    return f"| {name} | {architecture_of(name)} | {way} | {logits.at_once:.1e} | {logits.in_parts:.1e} | {counts} |"


def main(names: list[str]) -> None:
    """Print the rows of these families, or of all."""
    torch.set_num_threads(1)
    disable_progress_bar()
    print(HEADER)
    for name in names or FAMILIES:
        print(row(name), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
