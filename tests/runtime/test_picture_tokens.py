"""What pictures cost, told without loading a model: as the engine's own processors have it, in check and in explain."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
from support.tiny_vision import picture, tiny_vision

import dslc
from dslc import cli
from dslc.compiler.budget import budget
from dslc.core.media import image_ref, video_ref
from dslc.core.picture_tokens import picture_tokens
from dslc.core.text.load import load_tokenizer
from dslc.runtime.loader import empty_model, load_config
from dslc.runtime.media.library import MediaLibrary
from dslc.runtime.models.registry import known_models
from dslc.runtime.models.vision.base import VisionLM

FAMILIES = ["gemma3", "mllama", "llava", "llava_next", "llava_onevision", "qwen2_vl", "qwen2_5_vl"]
SIZES = [(40, 30), (64, 28), (28, 64), (28, 28), (200, 31), (13, 90), (300, 300)]


def library_of(family: str) -> MediaLibrary:
    model: Any = empty_model(load_config(tiny_vision(family)))
    return MediaLibrary(model.processor(), 512)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_count_is_that_of_the_models_processor(family, tmp_path):
    known = picture_tokens(tiny_vision(family))
    assert known is not None
    library = library_of(family)
    assert known.kinds == library.kinds
    around = 4 if family == "gemma3" else 0  # its line breaks may be tokens of their own
    path = tmp_path / "picture.png"
    for size in SIZES:
        num = len(library.picture(image_ref(picture(1, size))).ids)
        for bounds in (known.of_image(None), known.of_image((size[1], size[0]))):
            assert bounds[0] <= num <= bounds[1] - around, size
        picture(1, size).save(path)
        least, most = known.of("image", str(path))
        assert least <= num <= most - around
        if family not in ("llava_next", "llava_onevision"):
            assert least == num == most - around
    if "video" in known.kinds:
        for num_frames in (1, 2, 5):
            film = np.stack([np.asarray(picture(i, (60, 40))) for i in range(num_frames)])
            num = len(library.picture(video_ref(film, num_frames)).ids)
            least, most = known.of("video", num_frames=num_frames)
            assert least <= num <= most
            assert known.of_video is not None
            least, most = known.of_video(num_frames, (40, 60))
            assert least == num == most
    assert known.of("video")[1] == float("inf")


def test_every_model_that_sees_is_known_and_no_other():
    seeing = {name for name, cls in known_models().items() if issubclass(cls, VisionLM)}
    from dslc.core import picture_tokens as module

    assert set(module._FAMILIES) == seeing
    assert picture_tokens(None) is None and picture_tokens("no/such/folder") is None


PROGRAM = """\
import dslc

@dslc.function
def ask(s, image):
    s += "See "
    s += dslc.image("{path}")
    s += dslc.image(image)
    s += " What?" + dslc.gen("answer", max_tokens=6)

@dslc.function
def film(s, clip):
    s += dslc.video(clip, 4) + dslc.gen("answer", max_tokens=6)
"""


@pytest.fixture
def program(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("DSLC_CACHE_DIR", str(tmp_path / "cache"))
    picture(0, (64, 28)).save(tmp_path / "cat.png")
    path = tmp_path / "seer.py"
    path.write_text(PROGRAM.replace("{path}", str(tmp_path / "cat.png")))
    return str(path)


def test_check_names_the_tokens_of_pictures(program, capsys):
    model = str(tiny_vision("qwen2_vl"))
    assert cli.main(["check", f"{program}:ask", "--model", model]) == 0
    out = capsys.readouterr().out
    num = len(library_of("qwen2_vl").picture(image_ref(picture(0, (64, 28)))).ids)
    assert f"{program}:6: note: the image takes {num} tokens of the prompt [picture-tokens]" in out
    assert f"{program}:7: note: the image takes 6 to 18 tokens of the prompt [picture-tokens]" in out
    assert cli.main(["check", f"{program}:film", "--model", str(tiny_vision("llava"))]) == 1
    assert "takes no videos [backend]" in capsys.readouterr().out
    assert cli.main(["check", f"{program}:ask"]) == 1  # the built-in model reads text only
    assert "takes no images [backend]" in capsys.readouterr().out


def test_check_finds_pictures_that_cannot_fit(program, capsys):
    assert cli.main(["check", f"{program}:ask", "--model", str(tiny_vision("llava")), "--context-length", "30"]) == 1
    assert "its prompt has at least 30 tokens, and the model's context only 30 [context]" in capsys.readouterr().out


def test_explain_names_the_tokens_of_pictures(program, capsys):
    assert cli.main(["compile", f"{program}:ask", "--explain", "--model", str(tiny_vision("llava"))]) == 0
    out = capsys.readouterr().out
    for line in (6, 7):
        assert f"{program}:{line}: image: 16 tokens of the prompt\n" in out
    assert cli.main(["compile", f"{program}:ask", "--stats", "--model", str(tiny_vision("llava"))]) == 0
    stats = dict(line.rsplit(maxsplit=1) for line in capsys.readouterr().err.splitlines() if "run_prompt" in line)
    assert all(30 < int(value.partition("..")[2] or value) < 60 for value in stats.values()) and stats
    assert cli.main(["compile", f"{program}:film", "--explain", "--model", str(tiny_vision("llava"))]) == 0
    assert "video: the model takes no videos" in capsys.readouterr().out


@pytest.mark.parametrize("family", ["gemma3", "qwen2_vl", "llava_next"])
def test_the_budget_of_a_program_holds_what_its_run_used(family):
    @dslc.function
    def ask(s, image):
        s += "See " + dslc.image(image) + " and\\n" + dslc.image(image) + " What?"
        s += dslc.gen("answer", max_tokens=3, ignore_eos=True)

    path = tiny_vision(family)
    found = budget(ask.compile(), load_tokenizer(path), pictures=picture_tokens(path))
    with dslc.Engine(model_path=str(path), max_total_tokens=1024, max_running_requests=2) as engine:
        before = engine.counters()
        ask.run(image=picture(3), backend=engine, temperature=0.0)
        used = engine.counters() - before
    assert found.sites[0].prompt.least <= used.prompt_tokens <= found.sites[0].prompt.most < 1000
