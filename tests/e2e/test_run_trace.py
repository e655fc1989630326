"""`dslc run --trace` and `--timeline`: what is measured of each request adds up to the engine's own counters."""

import json
import re
import sys
from html.parser import HTMLParser

import pytest
import torch

import dslc
from dslc import cli
from dslc.cli_trace import watch
from dslc.compiler.run_tree import Shares, by_op, print_trace
from dslc.compiler.timeline import print_timeline
from dslc.compiler.watch import SUMMED


@dslc.function
def triage(s, ticket):
    s += f"Tickets are sorted by kind.\nTicket: {ticket}\nKind: "
    s += dslc.select("kind", ["bug", "billing", "other"])
    forks = s.fork(2)
    for branch in forks:
        branch += "\nWhy? "
        branch += dslc.gen("why", max_tokens=9)
    forks.join()
    s += "\nCode: "
    s += dslc.gen("code", regex="id=[A-Z]{2}-[0-9]{3}-end", max_tokens=24)
    s += "\nTitles: "
    s += dslc.gen("titles", n=2, temperature=1, max_tokens=5)


ROWS = [{"ticket": text} for text in ("The app crashes.", "I paid twice.", "The app crashes at night.", "Hello")]


@pytest.fixture(scope="module")
def engine():
    torch.set_num_threads(1)
    with dslc.Engine(dtype="float32") as engine:
        yield engine


@pytest.fixture(scope="module", params=["compiled", "interpreted", "small pool"])
def watched(request):
    torch.set_num_threads(1)
    options = {"max_total_tokens": 160, "max_running_requests": 8} if request.param == "small pool" else {}
    with dslc.Engine(dtype="float32", **options) as engine:
        watched = watch(engine, engine, with_tokens=True)
        compiled = request.param != "interpreted"
        triage.run_batch(ROWS, backend=watched, seed=3, on_error="raise", compiled=compiled)
        yield watched, triage.plan(engine.tokenizer) if compiled else None, request.param


def test_requests_add_up_to_the_engines_counters(watched):
    trace = watched[0].trace()
    assert trace.differences() == {}
    counted = trace.counted
    assert {name: getattr(trace.sums(), name) for name in SUMMED} == {name: getattr(counted, name) for name in SUMMED}
    assert counted.forced_tokens > 0
    assert counted.requests == len(trace.spans) > 16 and counted.rows > counted.prefilled_tokens > 0
    if watched[2] == "small pool":
        assert counted.preemptions + counted.evicted_tokens > 0


def test_shares_of_all_ops_are_all_forwards(watched):
    trace = watched[0].trace()
    shares = [Shares.of(spans, trace.forwards) for spans in by_op(trace).values()]
    assert sum(share.rows for share in shares) == trace.counted.rows
    assert sum(share.forwards for share in shares) == trace.counted.forwards  # exact fractions
    assert sum(share.seconds for share in shares) == pytest.approx(sum(f.seconds for f in trace.forwards))


def test_the_tree_prints_the_same_numbers(watched):
    trace = watched[0].trace()
    text = print_trace(trace, watched[1], watched[0].tokenizer)
    prompts = [tuple(map(int, found)) for found in re.findall(r"= prompt: (\d+) tokens = (\d+) cached \+ (\d+)", text)]
    counted = trace.counted
    assert tuple(map(sum, zip(*prompts, strict=True))) == (
        counted.prompt_tokens,
        counted.cached_tokens,
        counted.prefilled_tokens,
    )
    assert sum(map(int, re.findall(r"= model: (\d+) rows", text))) == counted.rows
    assert sum(map(int, re.findall(r"= generated: (\d+) tokens", text))) == counted.generated_tokens
    assert "note:" not in text and f"{counted.rows} rows in {counted.forwards} forwards" in text
    if watched[1] is not None:
        assert 'gen "why" on branch 1' in text and "not reached" not in text
    else:
        assert "triage: select %" in text


def test_token_events_are_all_tokens_in_order(watched):
    trace = watched[0].trace()
    for span in trace.spans:
        times = [span.submitted_at, span.queued_at, span.prefilled_at, span.ended_at]
        assert times == sorted(times) and span.began_at <= span.prefilled_at
        if span.request.score is None:
            assert sum(count for _, _, count in span.tokens) == span.num_generated > 0
            assert sum(count for _, _, count in span.forced) == span.num_forced
        else:
            assert not span.tokens


def test_watching_changes_no_output(engine):
    engine.flush_cache()
    plain = triage.run_batch(ROWS, backend=engine, seed=3)
    engine.flush_cache()
    seen = triage.run_batch(ROWS, backend=watch(engine, engine, with_tokens=True), seed=3)
    engine.trace = None
    assert [state.text() for state in plain] == [state.text() for state in seen]
    assert [state["titles"] for state in plain] == [state["titles"] for state in seen]


class Page(HTMLParser):
    """Checks that tags are balanced; collects classes, lines and the data."""

    def __init__(self, text):
        super().__init__()
        self.open, self.classes, self.requests, self.names = [], [], 0, set()
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.names |= values.keys()
        if tag != "meta":
            self.open.append(tag)
        self.classes += (values.get("class") or "").split()
        self.requests += "data-request" in values

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_timeline_has_every_request_and_loads_nothing(watched):
    trace = watched[0].trace()
    text = print_timeline(trace, watched[1])
    page = Page(text)
    assert page.requests == len(trace.spans) and not {"src", "href"} & page.names and "http" not in text
    assert page.classes.count("forward") == trace.counted.forwards
    assert page.classes.count("token") == sum(len(span.tokens) for span in trace.spans)
    assert page.classes.count("forced") == sum(len(span.forced) for span in trace.spans) > 0
    assert page.classes.count("preempted") == trace.counted.preemptions
    data = json.loads(re.search(r'id="data">(.*?)</script>', text).group(1))
    assert data["counted"]["rows"] == trace.counted.rows
    assert sum(entry["cached_tokens"] for entry in data["requests"]) == trace.counted.cached_tokens
    assert {entry["state"] for entry in data["requests"]} == {"finished"}


def test_the_command_prints_the_tree_and_writes_the_page(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "path", list(sys.path))
    path, page = tmp_path / "p.py", tmp_path / "run.html"
    path.write_text(
        "import dslc\n@dslc.function\ndef p(s, q):\n    s += f'</script> {q}'\n    s += dslc.gen('a', max_tokens=3)\n"
    )
    argv = ["run", str(path), "--arg", "q=why", "--trace", "--timeline", str(page), "--dtype", "float32"]
    assert cli.main(argv) == 0
    out, err = capsys.readouterr()
    assert f'{path}:5: gen "a"\n  = 1 requests\n  = prompt: ' in err and "= prompt" not in out
    assert Page(page.read_text()).requests == 1
    assert cli.main([*argv[:-3], str(tmp_path / "none" / "run.html")]) == 1
    assert "--timeline" in capsys.readouterr().err
