"""`state.save_html` and a notebook's export in a real browser: the tokens have the colours of where they come from.

Run with `make test-browser`; that of the notebook needs nbclient, nbconvert and ipykernel.
"""

import re
import textwrap

import pytest
import torch
from support.browser import Browser

import dslc
from dslc.lang.display import branches

pytestmark = pytest.mark.browser
torch.set_num_threads(1)
COLOURS = """
  Object.fromEntries(["cached", "prompt", "sampled", "forced", "chosen"].map(kind => {
    const found = [...document.querySelectorAll(".dslc-state .tok." + kind)];
    return [kind, {
      count: found.length,
      text: found.map(e => e.textContent).join(""),
      colours: [...new Set(found.map(e => getComputedStyle(e).backgroundColor))],
    }];
  }))
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    return Browser(tmp_path_factory.mktemp("browser"))


@dslc.function
def program(s, question):
    s += dslc.system("Be <b>brief</b> & kind.") + dslc.user(question)
    s += dslc.assistant(dslc.gen("answer", max_tokens=12))
    s += dslc.user("Kind?") + dslc.assistant(dslc.select("kind", ["fact", "guess"]))
    s += dslc.assistant("It is " + dslc.gen("n", regex="[0-9]{3} euros", max_tokens=12))
    for branch in s.fork(2):
        branch += dslc.user("Why?") + dslc.assistant(dslc.gen("why", max_tokens=6))


def test_a_saved_state_shows_where_its_tokens_come_from(browser, tmp_path):
    with dslc.Engine() as engine:
        program.run(question="What is the capital of France?", backend=engine, temperature=0)
        state = program.run(question="What is the capital of Italy?", backend=engine, temperature=0)
    state.save_html(tmp_path / "state.html")
    page = (tmp_path / "state.html").read_text(encoding="utf-8")
    known = branches(state)
    found = browser.answer(
        page,
        f"""{{
          kinds: {COLOURS},
          texts: [...document.querySelectorAll(".dslc-state pre")].map(e => e.textContent),
          tabs: [...document.querySelectorAll("label.pick")].map(e => e.textContent),
          shown: [...document.querySelectorAll(".tab")].map(e => getComputedStyle(e).display),
          then: (document.querySelectorAll("input.pick")[1].click(),
                 [...document.querySelectorAll(".tab")].map(e => getComputedStyle(e).display)),
          rows: [...document.querySelectorAll(".tab")][0].querySelectorAll("tr").length,
          answer: [...document.querySelectorAll('.tab')][0].querySelectorAll('[data-var="answer"]').length,
          title: document.querySelector(".tok.sampled").title,
          scripts: document.querySelectorAll(".dslc-state script").length,
          loaded: performance.getEntriesByType("resource").length,
        }}""",
    )
    assert found["texts"] == ["".join(piece.text for piece in branch.pieces) for branch in known]
    assert found["texts"][0] == state.text()
    kinds = found["kinds"]
    colours = [kinds[kind]["colours"] for kind in ("cached", "prompt", "sampled", "forced", "chosen")]
    assert all(len(colour) == 1 and colour != ["rgba(0, 0, 0, 0)"] for colour in colours)
    assert len({colour[0] for colour in colours}) == 5
    assert "Be <b>brief</b> & kind." in kinds["cached"]["text"]  # the beginning that both runs share
    assert "Italy" in kinds["prompt"]["text"] + kinds["cached"]["text"] and " euros" in kinds["forced"]["text"]
    assert state["kind"] in kinds["chosen"]["text"] and state["answer"] in kinds["sampled"]["text"]
    assert found["tabs"] == ["state", "branch 0.0", "branch 0.1"]
    assert found["shown"] == ["block", "none", "none"] and found["then"] == ["none", "block", "none"]
    assert found["rows"] == 4 and found["answer"] == len(
        [piece for piece in known[0].pieces if piece.var == "answer" and piece.text]
    )
    assert found["title"].startswith("answer, sampled, token ")
    assert found["scripts"] == 0 and found["loaded"] == 0


def test_a_notebook_shows_states(browser, tmp_path):
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    nbconvert = pytest.importorskip("nbconvert")
    pytest.importorskip("ipykernel")
    setup = """
        import torch, dslc
        torch.set_num_threads(1)

        @dslc.function
        def ask(s, place):
            s += dslc.user(f"What is the capital of {place}?") + dslc.assistant(dslc.gen("a", max_tokens=12))

        engine = dslc.Engine()
    """
    cells = [setup, 'ask.run(place="France", backend=engine, temperature=0)']
    cells.append('ask.run(place="Italy", backend=engine, temperature=0, stream=True)')
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(textwrap.dedent(cell)) for cell in cells])
    nbclient.NotebookClient(book, timeout=120).execute(cwd=str(tmp_path))
    page, _ = nbconvert.HTMLExporter(embed_images=True).from_notebook_node(book)
    page = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)  # MathJax and the like, from elsewhere
    found = browser.answer(page, COLOURS)
    assert "Paris" in found["sampled"]["text"] and "Rome" in found["sampled"]["text"]
    assert "capital" in found["cached"]["text"]  # of the second cell
    colours = [found[kind]["colours"] for kind in ("cached", "prompt", "sampled")]
    assert all(len(colour) == 1 for colour in colours) and len({colour[0] for colour in colours}) == 3
    assert browser.answer(page, 'document.querySelectorAll(".dslc-state").length') == 2
