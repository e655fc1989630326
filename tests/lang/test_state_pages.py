"""A state as a page and in a notebook, without a browser: what is shown, also while the program runs, and at its end.

tests/lang/test_state_pages_in_browser.py looks at the same with a browser's eyes.
"""

import html
import itertools
import re
import sys
import threading
import time

import pytest

import dslc
from dslc.lang.display import branches, pieces_of


@dslc.function
def program(s, gates):
    s += dslc.user("One & <two>?") + dslc.assistant(dslc.gen("first", max_tokens=64))
    for branch in s.fork(2):
        branch += dslc.user("Why?") + dslc.assistant(dslc.gen("why", max_tokens=64))
    s += dslc.user("Which?") + dslc.assistant(dslc.select("kind", ["yes", "no"]))
    gates["reached"].set()
    s += dslc.user("Last?") + dslc.assistant(dslc.gen("last", max_tokens=200))


def shown_text(page, number=0):
    """The text of a tab."""
    found = re.findall(r"<pre>(.*?)</pre>", page, re.DOTALL)
    return html.unescape(re.sub(r"<[^>]*>", "", found[number]))


def kinds(page):
    return set(re.findall(r'class="tok (\w+)"', page))


class Notebook:
    """In place of IPython's display: `pages` are what was shown, in order; `saw` is called with each."""

    def __init__(self, saw=lambda page: None):
        self.pages, self.saw = [], saw

    HTML = staticmethod(str)

    def display(self, page, display_id=None):
        self.update(page)
        return self

    def update(self, page):
        self.pages.append(page)
        self.saw(page)


@pytest.fixture
def notebook(monkeypatch):
    made = Notebook()
    monkeypatch.setitem(sys.modules, "IPython.display", made)
    monkeypatch.setattr("dslc.lang.html.LIVE_S", 0.0)
    monkeypatch.setattr("dslc.lang.html.LIVE_SHARE", 1e9)
    return made


class Slow(dslc.ScriptedBackend):
    """A token at a time, and each takes its time."""

    def step(self):
        time.sleep(0.005)
        super().step()


def answers(prompt):
    return "word " * 40 if "Last?" in prompt else "because" if "Why?" in prompt else "an answer"


def test_a_page_has_every_token_and_branch(tmp_path):
    state = program.run(gates={"reached": threading.Event()}, backend=dslc.ScriptedBackend(answers, choose="no"))
    state.save_html(tmp_path / "state.html")
    page = (tmp_path / "state.html").read_text("utf-8")
    found = branches(state)
    assert [branch.path for branch in found] == ["0", "0.0", "0.1"]
    for number, branch in enumerate(found):
        assert shown_text(page, number) == "".join(piece.text for piece in branch.pieces)
    assert shown_text(page) == state.text() == "".join(piece.text for piece in pieces_of(state))
    assert kinds(page) == {"prompt", "sampled", "chosen", "text"}
    assert "One &amp; &lt;two&gt;?" in re.sub(r"</?span[^>]*>", "", page) and "<script" not in page
    variables = {piece.var for piece in found[0].pieces} - {None}
    assert variables == {"first", "kind", "last"} and "branch 0.1" in page


def test_a_notebook_shows_a_stream_while_it_grows(notebook):
    seen = {"reached": threading.Event()}
    backend = Slow(answers, choose="no", tokens_per_step=1)
    state = program.run(gates=seen, backend=backend, stream=True)
    state._ipython_display_()
    texts = [shown_text(page) for page in notebook.pages]
    assert len(texts) > 10 and texts[-1] == state.text() and texts[0] == ""
    assert all(state.text().startswith(text) for text in texts)
    assert all(len(a) <= len(b) for a, b in itertools.pairwise(texts))
    growing = [page for page in notebook.pages[:-1] if "branch 0.1" in page and "word" in shown_text(page)]
    assert growing and "because" in shown_text(growing[-1], 1)  # the branches are there before the end
    assert {"sampled", "chosen", "prompt"} <= kinds(growing[-1])


def test_leaving_a_cell_ends_its_program(notebook):
    def interrupt(page):
        if "word" in page:
            notebook.saw = lambda page: None
            raise KeyboardInterrupt

    notebook.saw = interrupt
    backend = Slow(answers, choose="no", tokens_per_step=1)
    state = program.run(gates={"reached": threading.Event()}, backend=backend, stream=True)
    with pytest.raises(KeyboardInterrupt):
        state._ipython_display_()
    assert isinstance(state.error(), dslc.Aborted) and backend.num_in_flight == 0
    assert "word" in shown_text(notebook.pages[-2]) and "Last?" in shown_text(notebook.pages[-1])


def test_a_failed_stream_is_shown_as_far_as_it_came(notebook):
    @dslc.function
    def failing(s):
        s += "text " + dslc.gen("a", max_tokens=8)
        assert s["a"] and shown.wait(20)
        raise ValueError("no further")

    shown = threading.Event()
    notebook.saw = lambda page: shown.set()
    state = failing.run(backend=dslc.ScriptedBackend("fine"), stream=True)
    with pytest.raises(ValueError, match="no further"):
        state._ipython_display_()
    assert shown_text(notebook.pages[-1]) == "text fine"
