"""How close every family of models is to transformers: the tables of docs/models.md.

    python benchmarks/models.py            # two minutes on one core; needs no network
    python benchmarks/models.py gemma2     # some rows
    python benchmarks/models.py vision     # those of models that see

Each row is a tiny random checkpoint, made by transformers as `tests/support/families.py` says, and compared as
`tests/support/family_checks.py` does: logits of a prompt computed at once, and of chunks and single tokens in mixed
batches; and the greedy ids of 16 prompts continued together. Models that see have a table of their own, as
`tests/support/vision_checks.py` compares them.
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
from support.vision_checks import VISION_FAMILIES, WITH_VIDEO, compare_vision, vision_architecture, vision_label
from transformers.utils.logging import disable_progress_bar

HEADER = """\
| family | architecture | runs in | at once | in parts | greedy ids |
|---|---|---|---|---|---|"""

VISION_HEADER = """\
| family | architecture | takes | at once | cached | in chunks | greedy ids |
|---|---|---|---|---|---|---|"""


def row(name: str) -> str:
    """A line of the table."""
    runner = runner_for(name)
    logits, greedy = compare_logits(name, runner), compare_greedy(name, runner)
    way = "transformers' code" if name in GENERIC else "C++, torch" if runner.native is not None else "torch"
    counts = f"{greedy.same} of {greedy.clear} clear of {greedy.total}"
    return f"| {name} | {architecture_of(name)} | {way} | {logits.at_once:.1e} | {logits.in_parts:.1e} | {counts} |"


def vision_row(name: str) -> str:
    """A line of the table of models that see."""
    found = compare_vision(name)
    takes = "images, videos" if name in WITH_VIDEO else "images"
    counts = f"{found.same} of {found.clear} clear of {found.total}"
    errors = f"{found.at_once:.1e} | {found.cached:.1e} | {found.in_parts:.1e}"
    return f"| {vision_label(name)} | {vision_architecture(name)} | {takes} | {errors} | {counts} |"


def main(names: list[str]) -> None:
    """Print the rows of these families, or of all."""
    torch.set_num_threads(1)
    disable_progress_bar()
    texts = [name for name in names if name in FAMILIES] if names else list(FAMILIES)
    seeing = [name for name in VISION_FAMILIES if not names or "vision" in names or name in names]
    if unknown := set(names) - {*FAMILIES, *VISION_FAMILIES, "vision"}:
        sys.exit(f"unknown: {', '.join(sorted(unknown))}; known are {', '.join([*FAMILIES, *VISION_FAMILIES])}, vision")
    for header, line, chosen in ((HEADER, row, texts), (VISION_HEADER, vision_row, seeing)):
        if chosen:
            print(header)
        for name in chosen:
            print(line(name), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
