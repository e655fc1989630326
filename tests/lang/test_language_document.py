"""docs/language.md: each section's blocks run as one file; `# ->` is the value of its line, `# !>` its error."""

import linecache
import re
import traceback
from pathlib import Path

import pytest
from support.scripted import ScriptedBackend

import dslc
from dslc.core.errors import QueueFull
from dslc.lang.gens import GEN_OPTIONS
from dslc.lang.options import RUN_NAMES

PAGE = Path(dslc.__file__).parent / "docs" / "language.md"
SECTION = re.compile(r"^##+ (.*?)\n(.*?)(?=^##+ |\Z)", re.MULTILINE | re.DOTALL)
BLOCK = re.compile(r"^(<!-- built-in model -->\n)?```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CLAIM = re.compile(r"^( *)(\S.*?) *# (->|!>) (.*)$", re.MULTILINE)

# What the stand-in says after a prompt that ends so; the first that fits.
ANSWERS = [
    ("river runs.*A:", " The Seine."),
    ("capital of France.*A:", " Paris."),
    ("capital of Italy.*A:", " Rome."),
    ("capital of Germany.*A:", " Berlin."),
    ("(yes or no.|Are you sure\\?)<.im_end.>\n<.im_start.>assistant\n", "yes"),
    ("capital of France\\?<.im_end.>\n<.im_start.>assistant\n", "Paris."),
    ("JSON:", '{"name": "Ada", "age": 36}'),
    ("Mood: ", "good"),
    ("Years to 100: ", "64"),
    ("Zip: ", "80331"),
    ("Good\\? ", "yes"),
    ("Years: ", "64"),
    ("Word: ", '"well"'),
    ("Date: ", "2026-11"),
    ("About rivers: ", "The Seine.\n"),
    ("Tip 1:", " Go to bed early.\n"),
    ("Tip 2:", " No coffee at night.\n"),
    ("In short:", " Sleep.\n"),
    ("Draft:", " good\n"),
    ("Final, better than good:", " best\n"),
    ("Record: ", '{"name": "Ada", "age": 36}'),
    ("two\nA:|one\nA:", " fine\n"),
    ("2100000<.im_end.>\n<.im_start.>assistant\n", "2.1 million."),
    ("population<.*in Paris.*assistant\n", '{"name": "population", "arguments": {"city": "Paris"}}'),
    ("sum of 2 and 2.", "<think>\n2 and 2 are 4.\n</think>\n\n4"),
    ("A story:", " Once there was a river that ran into the sea.\n"),
    ("Moral:", " Run.\n"),
    ("More:", "more and more"),
    ("FAIL\nA:", QueueFull("full")),
]
SCORES = {"bug": -1.0, "billing": -3.0, "other": -4.0}


def answer(prompt):
    return next(text for ending, text in ANSWERS if re.search(f"({ending})$", prompt, re.DOTALL))


def score(prompt, token):
    return SCORES.get(token, -4.0)


class Claims:
    """What the rewritten blocks call: each claim is counted, so a page whose claims were lost fails."""

    def __init__(self):
        self.num = 0

    def equal(self, value, said):
        self.num += 1
        assert repr(value) == said, f"the page says {said}, and it is {value!r}"

    def raises(self, call, said):
        self.num += 1
        kind, _, text = said.partition(":")
        try:
            call()
        except Exception as error:
            kinds = [each.__name__ for each in type(error).__mro__]
            assert kind in kinds, f"the page says {kind}, and it is {error!r}"
            assert text.strip() in str(error), f"the page says {text!r}, and it is {error}"
            if isinstance(error, dslc.DslcError):
                assert error.where is not None, f"{error!r} has no line"
            return
        raise AssertionError(f"the page says {said}, and nothing was raised")


def rewritten(source):
    def call(found):
        indent, line, arrow, said = found.groups()
        if arrow == "->":
            return f"{indent}claims.equal(({line}), {said!r})"
        return f"{indent}claims.raises(lambda: ({line}), {said!r})"

    return CLAIM.sub(call, source)


def sections():
    for title, text in SECTION.findall(PAGE.read_text(encoding="utf-8")):
        blocks = BLOCK.findall(text)
        if blocks:
            needs_model = bool(blocks[0][0])
            yield pytest.param("\n".join(source for _, source in blocks), needs_model, id=title.replace(" ", "-"))


@pytest.mark.parametrize(("source", "needs_model"), list(sections()))
def test_blocks_do_what_they_say(source, needs_model, tmp_path):
    claims = Claims()
    file = tmp_path / "page.py"
    text = rewritten(source)
    file.write_text(text, encoding="utf-8")
    linecache.checkcache(str(file))
    backend = None if needs_model else ScriptedBackend(answer, score=score)
    dslc.set_default_backend(backend)
    try:
        exec(compile(text, str(file), "exec"), {"__name__": "page", "claims": claims})
    except AssertionError:
        raise
    except Exception as error:
        raise AssertionError("".join(traceback.format_exception(error))) from error
    finally:
        dslc.set_default_backend(None)
    assert claims.num == len(CLAIM.findall(source)) > 0


def test_the_page_has_every_public_name_and_option():
    """A name or an option that is added is told of."""
    text = PAGE.read_text(encoding="utf-8")
    words = set(re.findall(r"\w+", text))
    backends = {name for name, module in dslc._WHERE.items() if module.startswith(".lang.remote")}
    missing = [name for name in dslc.__all__ if not name.startswith("_") and name not in words | backends]
    missing += [name for name in (*GEN_OPTIONS, *RUN_NAMES) if name not in words]
    methods = [name for name in dir(dslc.ProgramState) if not name.startswith("_")]
    inner = {
        "append", "append_text", "begin_role", "end_role", "role_region", "emit_gen", "emit_media", "emit_select",
        "emit_special", "emit_turn", "forget_types", "go_on_with", "open_turn", "sink", "stream",
    }  # fmt: skip
    missing += [name for name in methods if name not in words and name not in inner]
    assert not missing, f"docs/language.md does not tell of {', '.join(missing)}"
