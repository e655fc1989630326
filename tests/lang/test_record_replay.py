"""Recorded = replayed, byte for byte and without a model; what an edit changed, and only that, is made again."""

import json
import sys

import pytest
import torch
from support.scripted import ScriptedBackend

import dslc
from dslc.cli import main
from dslc.lang.record import diff, steps

torch.set_num_threads(1)
CALLS = []


def look_up(word):
    """A function with an effect, which a replay must not have again."""
    CALLS.append(word)
    return f"{word} is a word"


@dslc.function
def story(s, topic):
    s += dslc.system("Be brief.") + dslc.user(f"Tell me of {topic}.")
    s += dslc.assistant(dslc.gen("text", max_tokens=10, temperature=1.0))
    s += dslc.user(look_up(topic))
    s += dslc.assistant(dslc.select("kind", ["true", "invented"]))
    first, second = s.fork(2)
    first += dslc.user("Why?") + dslc.assistant(dslc.gen("why", max_tokens=6, n=2, temperature=0.9))
    second += dslc.user("Year?") + dslc.assistant(dslc.gen("year", regex="1[0-9]{3}", return_logprob=True))
    s["both"] = [second["year"], first["why"][0]]


def gist(state):
    infos = {}
    for name in ("text", "kind"):
        infos[name] = {k: v for k, v in state.get_meta_info(name).items() if k not in ("id", "e2e_latency")}
    return state.text(), state.variables(), state.ret_value, infos


@pytest.fixture(scope="module")
def engine():
    with dslc.Engine() as engine:
        yield engine


@pytest.mark.parametrize("compiled", [None, False])
def test_a_replay_needs_no_model_and_gives_the_same(engine, tmp_path, compiled):
    path = tmp_path / "run.jsonl"
    with dslc.record(path):
        first = story.run(topic="cats", backend=engine, compiled=compiled)
        second = story.run(topic="cats", backend=engine, compiled=compiled)
        rows = story.run_batch([{"topic": t} for t in "abc"], backend=engine, compiled=compiled)
    assert first.get_meta_info("text")["seed"] != second.get_meta_info("text")["seed"]
    after = story.run(topic="dogs", backend=engine)  # not in the block: not in the file
    num_calls = len(CALLS)
    backend = dslc.replay(path)
    assert gist(story.run(topic="cats", backend=backend, compiled=compiled)) == gist(first)
    assert gist(story.run(topic="cats", backend=backend, compiled=compiled)) == gist(second)
    again = story.run_batch([{"topic": t} for t in "abc"], backend=backend, compiled=compiled)
    assert [gist(state) for state in again] == [gist(state) for state in rows]
    assert len(CALLS) == num_calls + (5 if compiled is False else 0)  # of a plan, host results are recorded
    assert backend.num_computed == 0
    with pytest.raises(dslc.ProgramError, match=r"run\.jsonl holds no generation") as caught:
        story.run(topic="dogs", backend=dslc.replay(path), compiled=compiled)
    assert caught.value.where.file == __file__ and after["kind"] in ("true", "invented")


def test_a_replay_streams_and_is_repeatable(engine, tmp_path):
    path = tmp_path / "run.jsonl"
    first = story.run(topic="cats", backend=engine, record=path, stream=True)
    text = "".join(first.text_iter())
    for _ in range(2):
        state = story.run(topic="cats", backend=dslc.replay(path), stream=True)
        assert "".join(state.text_iter()) == text == state.text()


def edited(last):
    @dslc.function
    def story(s, topic):
        s += "Once there was a " + topic + dslc.gen("a", max_tokens=8) + "." + dslc.gen("b", max_tokens=8)
        s += last + dslc.gen("c", max_tokens=8)

    return story


def test_after_an_edit_only_what_changed_is_made(engine, tmp_path, capsys):
    old, new = tmp_path / "old.jsonl", tmp_path / "new.jsonl"
    before = edited(" The end").run(topic="cat", backend=engine, record=old, temperature=0.7)
    live = dslc.replay(old, live=engine)
    after = edited(" And so").run(topic="cat", backend=live, record=new, temperature=0.7)
    assert (live.num_replayed, live.num_computed) == (2, 1)
    assert after["a"] == before["a"] and after["b"] == before["b"]
    lines = list(diff(old, new))
    assert any(line.startswith("-") and "The end" in line for line in lines)
    assert any(line.startswith("story[0] gen 3: prompt from character") and "And so" in line for line in lines)
    assert not any(line.startswith(("story[0] gen 1", "story[0] gen 2")) for line in lines)
    assert lines[-1].startswith("1 of 3 generations of the new one")
    assert main(["diff", str(old), str(new)]) == 1 and "And so" in capsys.readouterr().out
    assert main(["diff", str(old), str(old)]) == 0 and capsys.readouterr().out == ""
    assert main(["steps", str(new)]) == 0
    shown = capsys.readouterr().out
    assert shown.count("story[0] gen") == 3 and repr(after["c"]) in shown


def test_what_is_recorded_can_be_read(tmp_path):
    path = tmp_path / "run.jsonl"
    backend = ScriptedBackend("yes")
    state = story.run(topic="cats", backend=backend, record=path, seed=5)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines[0]["format"] == "dslc.journal" and lines[1]["run"]["seed"] == 5
    assert 'gen "text"' in lines[1]["run"]["ir"]
    assert lines[2]["instance"]["arguments"] == {"topic": "cats"}
    assert any(line.get("value") == "cats is a word" for line in lines)
    gens = [line for line in lines if "gen" in line]
    assert len(gens) == 4 and gens[0]["asked"]["prompt"].endswith("Tell me of cats.<|im_end|>\n<|im_start|>assistant\n")
    assert gens[0]["asked"]["prompt_ids"] and gens[0]["finished"]["outputs"][0]["token_ids"]
    assert [step.name for step in steps(path)][:2] == ["story[0] gen 1", "story[0] select 2"]
    assert gist(story.run(topic="cats", backend=dslc.replay(path))) == gist(state)


def test_text_only_backends_and_async_programs(tmp_path):
    @dslc.function
    async def program(s, topic):
        s += "About " + topic + dslc.gen("a", max_tokens=5)
        await s.get("a")

    path = tmp_path / "run.jsonl"
    backend = ScriptedBackend(["one", "two"], has_tokenizer=False, unlike=("token_ids",))
    with dslc.record(path):
        states = [program.run(topic=topic, backend=backend) for topic in ("x", "y")]
    again = dslc.replay(path)
    assert [program.run(topic=topic, backend=again)["a"] for topic in ("x", "y")] == [s["a"] for s in states]


def test_what_is_no_recording_is_named(tmp_path, engine):
    with pytest.raises(dslc.ProgramError, match="no such recording"):
        dslc.replay(tmp_path / "none.jsonl")
    (tmp_path / "bad.jsonl").write_text("hello\n")
    with pytest.raises(dslc.ProgramError, match=r"bad\.jsonl:1: not a line"):
        dslc.replay(tmp_path / "bad.jsonl")
    for nothing in (b"", b"\xff\xfe\x00", b'{"format": "cut off'):
        (tmp_path / "empty.jsonl").write_bytes(nothing)
        for read in (dslc.replay, lambda path: list(steps(path))):
            with pytest.raises(dslc.ProgramError, match=r"empty\.jsonl: nothing is recorded in it"):
                read(tmp_path / "empty.jsonl")
    story.run(topic="cats", backend=ScriptedBackend("yes"), record=tmp_path / "run.jsonl")
    with pytest.raises(dslc.ProgramError, match="another tokenizer"):
        dslc.replay(tmp_path / "run.jsonl", live=engine)
    with dslc.record(tmp_path / "two.jsonl"):
        story.run(topic="cats", backend=ScriptedBackend("yes"))
        with pytest.raises(dslc.ProgramError, match="one recording is of one backend"):
            story.run(topic="cats", backend=engine)


def test_a_journal_of_dslc_run_and_a_recording_are_of_one_format(tmp_path, capsys):
    (tmp_path / "prog.py").write_text(
        "import dslc\n\n\n@dslc.function\ndef tale(s):\n    s += 'Once' + dslc.gen('a', max_tokens=6)\n"
    )
    journal = tmp_path / "journal.jsonl"
    assert main(["run", str(tmp_path / "prog.py"), "--journal", str(journal), "--json"]) == 0
    text = json.loads(capsys.readouterr().out)["text"]
    sys.path.insert(0, str(tmp_path))
    try:
        from prog import tale
    finally:
        sys.path.remove(str(tmp_path))
        sys.modules.pop("prog", None)
    assert tale.run(backend=dslc.replay(journal)).text() == text
    with dslc.Engine() as engine:
        recorded = tale.run(backend=engine, record=tmp_path / "run.jsonl", seed=8).text()
    code = main(["run", str(tmp_path / "prog.py"), "--replay", str(tmp_path / "run.jsonl"), "--sampling", "seed=8"])
    shown = capsys.readouterr()
    assert code == 0 and recorded in shown.out and "1 gens and 0 host results used again" in shown.err


def test_a_file_of_something_else_is_not_written_over(tmp_path):
    (tmp_path / "notes.txt").write_text("mine\n")
    with pytest.raises(dslc.ProgramError, match=r"notes\.txt holds something else, which would be lost"):
        story.run(topic="cats", backend=ScriptedBackend("yes"), record=tmp_path / "notes.txt")
    assert (tmp_path / "notes.txt").read_text() == "mine\n"
    with pytest.raises(dslc.ProgramError, match="a recording is named by its path, not True"):
        story.run(topic="cats", backend=ScriptedBackend("yes"), record=True)
    for _ in range(2):  # a recording begins anew
        story.run(topic="cats", backend=ScriptedBackend("yes"), record=tmp_path / "run.jsonl")
    assert len([line for line in (tmp_path / "run.jsonl").read_text().splitlines() if '"format"' in line]) == 1
