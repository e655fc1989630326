"""Pictures in compiled programs and in saved plans: as interpreted, or refused at the line with what to do."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.scripted import ScriptedBackend
from support.tiny_vision import picture, tiny_vision, vision_greedy

import dslc
from dslc import cli
from dslc.compiler.pipeline import compile_program
from dslc.compiler.plan import Plan
from dslc.core.media import decode_image
from dslc.core.text.load import load_tokenizer
from dslc.lang.executor import Executor
from dslc.lang.hub import Hub, Task
from dslc.lang.options import run_options
from dslc.lang.state import ProgramState
from dslc.lang.walker import walk_plan

torch.set_num_threads(1)


def seeing() -> ScriptedBackend:
    backend = ScriptedBackend(lambda prompt: "yes")
    backend.capabilities = replace(backend.capabilities, media=frozenset({"image", "video"}))
    return backend


def sent(backend: ScriptedBackend) -> list[Any]:
    """What all requests hold, ids and pictures (as pixels) in order."""
    found: list[Any] = []
    for request in backend.requests:
        for segment in request.segments:
            media = segment.media
            found += list(segment.ids) if media is None else [np.asarray(decode_image(media)).tolist()]
        found.append("end")
    return found


@dslc.function
def one(s, image):
    s += "See " + dslc.image(image) + " what? " + dslc.gen("a", max_tokens=2)


@dslc.function
def several(s, images):
    for number, image in enumerate(images):
        s += f"{number}: "
        s += dslc.image(image)
    s += dslc.gen("a", max_tokens=2)


@dslc.function
def maybe(s, image, wanted):
    s += "Do you need it? "
    s += dslc.gen("need", max_tokens=1)
    if s["need"] == wanted:
        s += dslc.image(image)
    s += dslc.gen("a", max_tokens=2)


@dslc.function
def opened(s, path):
    image = Image.open(path)
    s += "See "
    s += dslc.image(image)
    s += f" of {image.width} columns " + dslc.gen("a", max_tokens=2)


@dslc.function
def turned(s, image):
    s += dslc.user("Which way up? " + dslc.image(image.rotate(180)))
    s += dslc.assistant(dslc.gen("a", max_tokens=2))


@dslc.function
def in_branches(s, images):
    forks = s.fork(len(images))
    for fork, image in zip(forks, images, strict=True):
        fork += dslc.image(image)
        fork += dslc.gen("part", max_tokens=2)
    forks.join()
    s += dslc.image(images[0]) + dslc.gen("a", max_tokens=2)


@pytest.fixture
def files(tmp_path):
    paths = []
    for seed in range(3):
        paths.append(str(tmp_path / f"{seed}.png"))
        picture(seed).save(paths[-1])
    return paths


def test_compiled_programs_send_what_interpreted_ones_do(files):
    images = [picture(seed) for seed in range(3)]
    cases: list[tuple[Any, dict[str, Any]]] = [
        (one, {"image": files[0]}),
        (one, {"image": images[0]}),
        (several, {"images": images}),
        (several, {"images": tuple(files)}),
        (several, {"images": []}),
        (maybe, {"image": images[1], "wanted": "yes"}),
        (maybe, {"image": images[1], "wanted": "no"}),
        (opened, {"path": files[2]}),
        (turned, {"image": images[2]}),
        (in_branches, {"images": files}),
    ]
    for function, arguments in cases:
        backends = [seeing(), seeing()]
        states = [
            function.run(**arguments, backend=backend, compiled=compiled)
            for backend, compiled in zip(backends, (True, False), strict=True)
        ]
        assert states[0].text() == states[1].text(), function
        assert sent(backends[0]) == sent(backends[1]), function
        assert sent(backends[0])


def test_a_plan_that_was_saved_sends_what_the_program_does(files):
    cases: list[tuple[Any, dict[str, Any]]] = [
        (one, {"image": files[0]}),
        (several, {"images": files}),
        (maybe, {"image": files[1], "wanted": "yes"}),
        (in_branches, {"images": files}),
    ]
    for function, arguments in cases:
        backends = [seeing(), seeing()]
        function.run(**arguments, backend=backends[0], compiled=False)
        plan = compile_program(function.compile(strict=True), backends[1].tokenizer)
        hub = Hub(backends[1])
        again = Plan.from_json(plan.to_json())
        executor = Executor(hub, plan.program.title, run_options({}, None), 0, again)
        executor.types, executor.hosts = function.types, function.hosts
        list(hub.run([Task(executor, partial(walk_plan, executor, again, arguments))]))
        assert ProgramState(executor).error() is None
        assert sent(backends[0]) == sent(backends[1]), function


PROGRAM = """\
import dslc
from PIL import Image

def load(path):
    return Image.open(path)

@dslc.function
def ask(s, image, question):
    s += "See "
    s += dslc.image(image)
    s += question
    s += dslc.gen("answer", max_tokens=6, ignore_eos=True)

@dslc.function
def held(s):
    s += "See "
    s += dslc.image("{path}")
    s += dslc.gen("answer", max_tokens=6, ignore_eos=True)

@dslc.function
def loaded(s, path):
    s += "See "
    s += dslc.image(load(path))
    s += dslc.gen("answer", max_tokens=6, ignore_eos=True)

HERE = Image.new("RGB", (8, 8))

@dslc.function
def frozen(s):
    s += dslc.image(HERE)
    s += dslc.gen("answer", max_tokens=6)
"""


@pytest.fixture
def program(tmp_path, files, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("DSLC_CACHE_DIR", str(tmp_path / "cache"))
    path = tmp_path / "seer.py"
    path.write_text(PROGRAM.replace("{path}", files[1]))
    return str(path)


def test_plans_with_pictures_run_from_the_shell(program, files, tmp_path, capsys):
    model = tiny_vision("gemma3")
    engine = ["--model", str(model), "--sampling", "temperature=0", "--max-total-tokens", "1024"]
    plan, rows = tmp_path / "prog.plan", tmp_path / "rows.jsonl"
    asked = [{"image": files[0], "question": " What?"}, {"image": files[2], "question": " Why?"}]
    rows.write_text("".join(json.dumps(row) + "\n" for row in asked))
    assert cli.main(["compile", f"{program}:ask", "--model", str(model), "-o", str(plan)]) == 0
    capsys.readouterr()
    out = tmp_path / "results.jsonl"
    assert cli.main(["run", str(plan), "--args", str(rows), "--out", str(out), *engine]) == 0
    tokenizer = load_tokenizer(model)
    found = [line for line in map(json.loads, out.read_text().splitlines()) if "variables" in line]
    assert len(found) == len(asked)
    for result in found:  # in the order in which they came
        row = asked[result["index"]]
        wanted, _ = vision_greedy(model, ["See ", Image.open(row["image"]).convert("RGB"), row["question"]], 6)
        assert result["variables"]["answer"] == tokenizer.decode(wanted)

    assert cli.main(["compile", f"{program}:held", "--model", str(model), "-o", str(plan)]) == 0
    assert cli.main(["run", str(plan), "--json", *engine]) == 0
    wanted, _ = vision_greedy(model, ["See ", Image.open(files[1]).convert("RGB")], 6)
    assert json.loads(capsys.readouterr().out)["variables"]["answer"] == tokenizer.decode(wanted)
    # The plan holds the path, not the picture: another one there is seen, and none is an error at the line.
    picture(7).save(files[1])
    assert cli.main(["run", str(plan), "--json", *engine]) == 0
    wanted, _ = vision_greedy(model, ["See ", picture(7)], 6)
    assert json.loads(capsys.readouterr().out)["variables"]["answer"] == tokenizer.decode(wanted)


def test_a_picture_that_is_gone_is_an_error_at_the_line_of_the_plan(program, files, tmp_path, capsys):
    model = tiny_vision("gemma3")
    plan = tmp_path / "prog.plan"
    assert cli.main(["compile", f"{program}:held", "--model", str(model), "-o", str(plan)]) == 0
    Path(files[1]).unlink()
    capsys.readouterr()
    assert cli.main(["run", str(plan), "--model", str(model), "--max-total-tokens", "512"]) == 1
    assert f"{program}:17: image: {files[1]!r} cannot be read" in capsys.readouterr().err


def test_what_a_plan_cannot_hold_is_refused_with_advice(program, files, tmp_path, capsys):
    model = tiny_vision("gemma3")
    plan = tmp_path / "prog.plan"
    assert cli.main(["compile", f"{program}:frozen", "--model", str(model), "-o", str(plan)]) == 0
    where = f"{program}:30: "
    advice = "a plan holds no pictures: give it as an argument, or by its path"
    message = f"an image that is not given by its path ({advice})"
    err = capsys.readouterr().err
    assert where in err and message in err
    assert cli.main(["run", str(plan), "--model", str(model)]) == 1
    err = capsys.readouterr().err
    assert where in err and message in err and "run the Python file" in err and err.count("\n") == 1
    # A function that opens it is called in the run; a plan needs the file that defines it.
    assert cli.main(["compile", f"{program}:loaded", "--model", str(model), "-o", str(plan)]) == 0
    capsys.readouterr()
    assert cli.main(["run", str(plan), "--arg", f"path={files[2]}", "--model", str(model)]) == 1
    assert "name the Python file that defines it with --tools" in capsys.readouterr().err
    options = ["--model", str(model), "--sampling", "temperature=0", "--max-total-tokens", "1024", "--json"]
    assert cli.main(["run", str(plan), "--arg", f"path={files[2]}", "--tools", program, *options]) == 0
    wanted, _ = vision_greedy(model, ["See ", picture(2)], 6)
    answer = json.loads(capsys.readouterr().out)["variables"]["answer"]
    assert answer == load_tokenizer(model).decode(wanted)
