"""What people get wrong, each with its own exception that says where; and the engine serves the next call."""

import inspect
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.tiny_models import tiny_checkpoint

import dslc


@pytest.fixture(scope="module")
def engine():
    torch.set_num_threads(1)
    with dslc.Engine(model_path=str(tiny_checkpoint("llama")), dtype="float32", context_length=128) as engine:
        yield engine


@dslc.function
def good(s, q):
    s += "Q: " + q + "\nA:" + dslc.gen("a", max_tokens=4)


@pytest.fixture(autouse=True)
def the_engine_serves_the_next_call(engine):
    reference = good.run(q="why?", backend=engine, temperature=0).text()
    yield
    assert good.run(q="why?", backend=engine, temperature=0).text() == reference
    engine.check_integrity()


def _here(offset=0):
    frame = inspect.currentframe().f_back
    return frame.f_lineno + offset


def _raises(kind, words, line, call):
    with pytest.raises(kind) as caught:
        call()
    message = str(caught.value)
    assert words in message, message
    if line is not None:
        assert f"{__file__}:{line}:" in message, message
    return caught.value


def test_missing_unknown_and_doubled_arguments(engine):
    line = _here(1)
    _raises(dslc.ArgumentError, "missing the argument 'q'", line, lambda: good.run(backend=engine))
    line = _here(1)
    _raises(dslc.ArgumentError, "no argument 'question'", line, lambda: good.run(question="x", backend=engine))
    line = _here(1)
    _raises(dslc.ArgumentError, "'q' twice", line, lambda: good.run("x", q="y", backend=engine))
    line = _here(1)
    _raises(dslc.ArgumentError, "batch_kwargs[1]", line, lambda: good.run_batch([{"q": "x"}, {}], backend=engine))


def test_wrong_first_parameter():
    def program(state, q):
        pass

    line = program.__code__.co_firstlineno
    _raises(
        dslc.ProgramError, "first parameter of the program program must be 's'", line, lambda: dslc.function(program)
    )


def test_invalid_regex(engine):
    @dslc.function
    def program(s):
        s += "x" + dslc.gen("a", regex="[a-")

    line = program.body.__code__.co_firstlineno + 2
    error = _raises(dslc.ConstraintError, "regex", line, lambda: program.run(backend=engine))
    assert error.field == "regex"


@pytest.mark.parametrize(
    "schema, keyword, words",
    [
        ({"$ref": "http://somewhere.example/schema"}, "$ref", "nothing is fetched"),
        ({"type": "string", "pattern": "(?=a)b"}, "pattern", "look"),
        ({"type": "stsring"}, "type", "unknown type 'stsring'"),
    ],
)
def test_schema_with_what_is_not_supported(engine, schema, keyword, words):
    whole = {"type": "object", "properties": {"a": schema}}

    @dslc.function
    def program(s):
        s += "x" + dslc.gen("a", json_schema=whole)

    line = program.body.__code__.co_firstlineno + 2
    error = _raises(dslc.ConstraintError, words, line, lambda: program.run(backend=engine))
    assert error.pointer == f"/properties/a/{keyword}"


def test_select_without_choices(engine):
    @dslc.function
    def program(s):
        s += "x" + dslc.select("a", [])

    line = program.body.__code__.co_firstlineno + 2
    _raises(dslc.RequestError, "at least one choice", line, lambda: program.run(backend=engine))


def test_a_name_read_before_it_exists(engine):
    @dslc.function
    def program(s):
        s += "x" + dslc.gen("a", max_tokens=2)
        s += s["b"]

    line = program.body.__code__.co_firstlineno + 3
    for compiled in (None, False):
        _raises(dslc.UndefinedVariable, "'b'", line, lambda: program.run(backend=engine, compiled=compiled))  # noqa: B023
    with pytest.raises(dslc.UndefinedVariable, match="'b'"):
        program.compile()


def test_prompt_longer_than_the_context(engine):
    line = good.body.__code__.co_firstlineno + 2
    error = _raises(dslc.ContextOverflow, "128", line, lambda: good.run(q="word " * 400, backend=engine))
    assert "good" in str(error)
    states = good.run_batch([{"q": "a"}, {"q": "word " * 400}, {"q": "b"}], backend=engine, temperature=0)
    assert [state.error() is None for state in states] == [True, False, True]
    assert states[2].text() == good.run(q="b", backend=engine, temperature=0).text()


def test_unknown_engine_option_and_bad_values():
    _raises(dslc.ConfigError, "did you mean 'page_size'", None, lambda: dslc.Engine(pagesize=4))
    _raises(dslc.ConfigError, "chunked_prefill_size", None, lambda: dslc.Engine(chunked_prefill_size=0))
    _raises(dslc.ConfigError, "schedule_policy", None, lambda: dslc.Engine(schedule_policy="best"))


def test_sampling_options_name_their_field(engine):
    @dslc.function
    def program(s):
        s += "x" + dslc.gen("a", top_p=1.5)

    line = program.body.__code__.co_firstlineno + 2
    _raises(dslc.RequestError, "top_p", line, lambda: program.run(backend=engine))
    with pytest.raises(dslc.RequestError, match="temperature"):
        good.run(q="x", backend=engine, temperature=float("nan"))


def _broken_copy(tmp_path, change):
    folder = tmp_path / "model"
    shutil.copytree(tiny_checkpoint("llama"), folder)
    change(folder)
    return str(folder)


def test_model_folder_without_weights(tmp_path):
    folder = _broken_copy(tmp_path, lambda path: (path / "model.safetensors").unlink())
    _raises(dslc.ModelLoadError, folder, None, lambda: dslc.Engine(model_path=folder))
    _raises(dslc.ModelLoadError, "nowhere", None, lambda: dslc.Engine(model_path=str(tmp_path / "nowhere")))


def test_model_with_a_wrong_shape_or_missing_tensor(tmp_path):
    def reshape(path):
        weights = load_file(path / "model.safetensors")
        name = next(n for n in weights if n.endswith("o_proj.weight"))
        weights[name] = weights[name][:-1].clone()
        save_file(weights, path / "model.safetensors", {"format": "pt"})

    folder = _broken_copy(tmp_path, reshape)
    error = _raises(dslc.ModelLoadError, "o_proj", None, lambda: dslc.Engine(model_path=folder))
    assert "model.safetensors" in str(error)

    def drop(path):
        weights = load_file(path / "model.safetensors")
        del weights[next(n for n in weights if n.endswith("down_proj.weight"))]
        save_file(weights, path / "model.safetensors", {"format": "pt"})

    folder = _broken_copy(tmp_path / "second", drop)
    _raises(dslc.ModelLoadError, "down_proj", None, lambda: dslc.Engine(model_path=folder))


def test_config_without_a_field(tmp_path):
    def change(path):
        config = json.loads((path / "config.json").read_text())
        del config["hidden_size"]
        (path / "config.json").write_text(json.dumps(config))

    folder = _broken_copy(tmp_path, change)
    _raises(dslc.DslcError, "hidden_size", None, lambda: dslc.Engine(model_path=folder))
