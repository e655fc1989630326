"""The Python blocks of pages that no other test runs, with what their text takes for granted; every page's are run."""

import re
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from support.tiny_vision import tiny_vision

import dslc

ROOT = Path(dslc.__file__).resolve().parent
DOCS = ROOT / "docs"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
OURS = ("engine.md", "media.md", "schedule.md")
torch.set_num_threads(1)


def blocks(name):
    return BLOCK.findall((DOCS / name).read_text("utf-8"))


def run_block(code, names, path):
    path.write_text(code)  # so that the compiler finds the source
    exec(compile(code, str(path), "exec"), names)


def test_a_logit_processor_of_ones_own(tmp_path):
    (code,) = blocks("engine.md")
    names = {}
    run_block(code, names, tmp_path / "block.py")
    names["engine"].close()
    with dslc.Engine() as engine:  # without it there is a digit
        plain = engine.generate("Q: How many days are there in a week?\nA:", {"max_new_tokens": 8, "temperature": 0})
    assert any(char.isdigit() for char in plain["text"])


def test_the_account_of_a_run(tmp_path):
    (code,) = blocks("schedule.md")

    @dslc.function
    def program(s, name):
        s += f"My name is {name}." + dslc.gen("answer", max_tokens=4)

    with dslc.Engine() as engine:
        names = {"engine": engine, "program": program, "rows": [{"name": "Emma"}, {"name": "Noah"}]}
        run_block(code, names | {"before": engine.counters()}, tmp_path / "block.py")


def test_programs_with_pictures(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("cat.png", "dog.png")):
        Image.fromarray(np.full((28, 28, 3), 40 + 100 * number, np.uint8)).save(name)
    compare, limits = blocks("media.md")
    with dslc.Engine(model_path=str(tiny_vision("llava")), dtype="float32") as engine:
        dslc.set_default_backend(engine)
        try:
            run_block(compare, {"dslc": dslc, "Image": Image}, tmp_path / "block.py")
            assert engine.counters().encoded_media == 2
            run_block(limits, {"dslc": dslc}, tmp_path / "limits.py")
        finally:
            dslc.set_default_backend(None)
            dslc.media_limits(max_bytes=dslc.MediaLimits().max_bytes, allow_urls=dslc.MediaLimits().allow_urls)


def test_every_page_with_blocks_is_run_by_some_test():
    tests = [at.read_text("utf-8") for at in (ROOT / "tests").rglob("test_*document*.py")]
    tests.append((ROOT / "tests" / "e2e" / "test_tutorial.py").read_text("utf-8"))
    for page in DOCS.rglob("*.md"):
        if BLOCK.search(page.read_text("utf-8")) and page.parent == DOCS:
            assert any(f'"{page.name}"' in test for test in tests) or page.name in OURS, page.name
