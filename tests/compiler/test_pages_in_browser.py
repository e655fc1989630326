"""The HTML pages in a real browser (chromium, headless): scripts run without an error, pointing marks what it should.

Run with `make test-browser`. What the page's scripts did is read from the document that the browser prints.
"""

import struct

import pytest
from support.browser import Browser
from support.scripted import ScriptedTokenizer

from dslc.compiler.ir import walk
from dslc.compiler.page import print_page
from dslc.compiler.parser import parse_program
from dslc.compiler.pipeline import compile_program
from dslc.compiler.timeline import print_timeline
from dslc.compiler.watch import Forward, RunTrace, Span
from dslc.core.backend import Counters
from dslc.core.errors import ErrorInfo
from dslc.core.events import Failed, Finished, FinishReason, Output
from dslc.core.request import GenRequest, Origin, ScoreTrie

pytestmark = pytest.mark.browser

SOURCE = """program triage(ticket) {
%0 = arg "ticket"
text "Sort <script>alert(1)</script> & \\" "
text %0
%1 = select "kind" ["bug", "other"]
%2 = eq %1 "bug"
switch %2 {
case true { %3 = gen "why" sampling=(max_new_tokens=8) constraint=regex("[a-z]+") }
case false { text "</div>" }
}
}
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    return Browser(tmp_path_factory.mktemp("browser"))


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    path = tmp_path_factory.mktemp("source") / "triage.ir"
    path.write_text(SOURCE)
    return parse_program(SOURCE, str(path))


@pytest.fixture(scope="module")
def page(program):
    tokenizer = ScriptedTokenizer()
    return print_page(program, compile_program(program, tokenizer), tokenizer)


def test_the_page_shows_every_op_beside_the_source(browser, program, page):
    found = browser.answer(
        page,
        """{
          ops: [...document.querySelectorAll(".op > code")].map(e => e.textContent),
          rows: document.querySelectorAll("#source .row").length,
          left: document.querySelector("#source").getBoundingClientRect().right,
          right: document.querySelector("#program").getBoundingClientRect().left,
          shown: [...document.querySelectorAll(".op")].every(e => e.getBoundingClientRect().height > 8),
          costs: [...document.querySelectorAll(".gen .cost, .select .cost")].map(e => e.textContent),
          scripts: document.querySelectorAll("script").length,
          loaded: performance.getEntriesByType("resource").length,
        }""",
    )
    assert len(found["ops"]) == sum(1 for _ in walk(program.body)) and found["rows"] >= 8
    assert 'text "Sort <script>alert(1)</script> & \\" "' in found["ops"]  # as text, not as an element
    assert found["left"] <= found["right"] and found["shown"] and found["loaded"] == 0
    assert found["scripts"] == 3  # ours, and the two of this test
    assert any("at most 8 new tokens" in cost for cost in found["costs"])
    assert any("trie tokens in one forward" in cost for cost in found["costs"])


def test_pointing_at_an_op_marks_its_line_and_its_values(browser, page):
    marked = """(() => {
      const ops = [...document.querySelectorAll(".op")];
      const eq = ops.find(e => e.querySelector("code").textContent.startsWith("%2 = eq"));
      const point = kind => eq.dispatchEvent(new MouseEvent(kind, {bubbles: true}));
      const texts = name => [...document.querySelectorAll("." + name)].map(e => e.textContent.trim());
      point("mouseover");
      const during = {marked: texts("marked"), maker: texts("maker"), user: texts("user")};
      point("mouseout");
      return {during, after: texts("marked").concat(texts("maker"), texts("user"))};
    })()"""
    found = browser.answer(page, marked)
    assert found["during"]["marked"] == ['6 %2 = eq %1 "bug"', '%2 = eq %1 "bug"']
    assert found["during"]["maker"] == ['%1 = select "kind" ["bug", "other"]']
    assert [text.split()[0] for text in found["during"]["user"]] == ["switch"]
    assert found["after"] == []


def test_pointing_at_a_line_marks_its_ops(browser, page):
    found = browser.answer(
        page,
        """(() => {
          const row = [...document.querySelectorAll(".row")].find(e => e.dataset.line.endsWith(":8"));
          row.dispatchEvent(new MouseEvent("mouseover", {bubbles: true}));
          return [...document.querySelectorAll("#program .marked")].map(e => e.textContent);
        })()""",
    )
    assert len(found) == 1 and found[0].startswith('%3 = gen "why"')


def test_the_page_can_be_seen(browser, page):
    picture = browser.folder / "page.png"
    browser.run(page, f"--screenshot={picture}")
    data = picture.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n" and struct.unpack(">II", data[16:24]) == (1400, 900)
    assert len(data) > 8_000  # an empty page takes a few hundred bytes


def trace():
    """A run of two instances: a gen with a forced run, a scored choice, one replayed, one that failed."""

    def request(name, instance, op, score=None):
        return GenRequest(id=name, segments=(), score=score, origin=Origin("triage", op, instance, "0"))

    ended = Finished(
        "a", (Output(0, "xyz", (1, 2, 3), (1, 2, 3), "", FinishReason("stop"), forced_runs=((1, 2),)),), 10, 4, 1,
        0.1, 0.5, 0.8,
    )  # fmt: skip
    scored = Finished("b", (), 12, 10, 1, 0.8, 0.9, 1.0, scores=((0.0,), (0.0,)))
    spans = (
        Span(
            request("a", 0, 3),
            0.0,
            0.1,
            0.5,
            0.8,
            10,
            4,
            [(0.5, 0, 1), (0.7, 0, 2)],
            [(0.6, 11)],
            ended,
            [(0.7, 0, 2)],
            0.2,
        ),
        Span(request("b", 0, 1, ScoreTrie(((1,), (2,)))), 0.8, 0.8, 0.9, 1.0, 12, 10, [], [], scored, [], 0.85),
        Span(request("c", 1, 3), 0.0, 0.0, 0.0, 0.1, 10, 4, [], [], ended, is_replayed=True),
        Span(request("d", 1, 1), 0.1, 0.1, 0.0, 0.4, ended=Failed("d", ErrorInfo("RequestError", "no </script>"))),
    )
    forwards = (Forward(0, 0.2, {"a": 6}, 0.5), Forward(1, 0.5, {"a": 1}, 0.8), Forward(2, 0.85, {"b": 2}, 1.0))
    return RunTrace(spans, forwards, Counters(requests=3, forwards=3, rows=9), 0.0, 1.0)


def test_the_timeline_places_every_request_and_event(browser, program):
    plan = compile_program(program, ScriptedTokenizer())
    found = browser.answer(
        print_timeline(trace(), plan),
        """(() => {
          const lines = [...document.querySelectorAll("[data-request]")];
          const lane = lines[0].querySelector(".lane").getBoundingClientRect();
          const at = e => { const r = e.getBoundingClientRect();
            return [(r.left - lane.left) / lane.width, (r.right - lane.left) / lane.width].map(x => +x.toFixed(2)); };
          lines[0].dispatchEvent(new MouseEvent("mouseenter"));
          return {
            names: lines.map(e => e.querySelector(".name").textContent),
            kinds: lines.map(e => [...e.querySelectorAll("i")].map(i => i.className)),
            queued: at(lines[0].querySelector(".queued")), cached: at(lines[0].querySelector(".cached")),
            prefill: at(lines[0].querySelector(".prefill")), decode: at(lines[0].querySelector(".decode")),
            several: at(lines[0].querySelector(".several"))[0], preempted: at(lines[0].querySelector(".preempted"))[0],
            forced: at(lines[0].querySelector(".forced"))[0],
            forwards: document.querySelectorAll(".forward").length,
            facts: document.getElementById("facts").textContent,
          };
        })()""",
    )
    assert found["names"] == ["gen why line 8", "select kind line 5", "gen why line 8", "select kind line 5"]
    assert found["queued"] == [0, 0.2] and found["prefill"][1] == 0.5 and found["decode"] == [0.5, 0.8]
    assert found["cached"] == [0.2, 0.32] and found["several"] == found["forced"] == 0.7 and found["preempted"] == 0.6
    assert found["forwards"] == 3 and "10 tokens = 4 cached + 6; 3 generated, 2 forced" in found["facts"]
    assert any("scored" in kind for kind in found["kinds"][1]) and "failed" in found["kinds"][3]
    assert found["kinds"][2] == ["replayed finished"]
