"""`dslc compile --emit html`: one page, without network, that shows a program beside its source; and `--emit dot`.

Each op is a box, regions are boxes around boxes, streams have colours; a gen or select says what `explain` says of it,
and what it will cost (`budget`). Pointing at an op marks its source line, the ops whose values it uses and those that
use its value; pointing at a line marks its ops.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from .budget import DEFAULT_NEW_TOKENS, Site, budget
from .explain import explain
from .fields import all_defined, defined, map_regions, new_streams, op_name, used
from .ir import AnyOp, Case, Gen, Loop, Program, Ref, Role, Scope, Select, Switch, Text, Tokens, walk
from .plan import Plan
from .printer import operand_text, print_op, string_text

if TYPE_CHECKING:
    from ..core.text.tokenizer import Tokenizer

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --mark: #fd06; --dim: #888 }
* { box-sizing: border-box } body { margin: 0; font: 13px/1.45 ui-monospace, monospace }
header { padding: .6rem 1rem; border-bottom: 1px solid var(--line) }
h1 { font-size: 1.1rem; margin: 0 }
main { display: grid; grid-template-columns: minmax(0, 2fr) minmax(0, 3fr); height: calc(100vh - 4rem) }
section { overflow: auto; padding: .5rem 1rem } #source { border-right: 1px solid var(--line) }
.row { white-space: pre-wrap; padding-left: 3.5em; text-indent: -3.5em }
.row i { color: var(--dim); font-style: normal }
.op { border-left: 3px solid hsl(calc(var(--stream) * 67 + 210) 60% 55%); margin: 2px 0; padding: 1px .5em }
.op > code { white-space: pre-wrap; overflow-wrap: anywhere } .body { margin-left: 1em } .case { color: var(--dim) }
.gen { background: #2a71 } .select { background: #27a1 } ul { margin: 0; padding-left: 1.2em; color: var(--dim) }
.gain::marker { content: "+ "; color: #2a7 } .limit::marker { content: "- "; color: #c55 }
.cost { color: var(--dim) } .cost b { color: CanvasText; font-weight: normal }
.marked { background: var(--mark) } .maker { outline: 2px solid #27a } .user { outline: 2px solid #c82 }
"""
_SCRIPT = """
const mark = (line, on) => document.querySelectorAll(`[data-line="${line}"]`).forEach(e => {
  const shown = e.classList.contains("row") ? e : e.querySelector("code");
  shown.classList.toggle("marked", on);
});
const flow = (e, on) => {
  const each = (selector, name) => document.querySelectorAll(selector).forEach(other =>
    other.querySelector("code").classList.toggle(name, on));
  (e.dataset.uses || "").split(" ").filter(Boolean).forEach(value => each(`[data-out~="${value}"]`, "maker"));
  (e.dataset.out || "").split(" ").filter(Boolean).forEach(value => each(`[data-uses~="${value}"]`, "user"));
};
const point = (e, on) => event => {
  event.stopPropagation();
  if (e.dataset.line) mark(e.dataset.line, on);
  flow(e, on);
};
document.querySelectorAll(".op, .row[data-line]").forEach(e => {
  e.addEventListener("mouseover", point(e, true));
  e.addEventListener("mouseout", point(e, false));
  e.addEventListener("click", event => {
    event.stopPropagation();
    const other = e.classList.contains("row") ? "#program" : "#source";
    document.querySelector(`${other} [data-line="${e.dataset.line}"]`)?.scrollIntoView({block: "center"});
  });
});
document.body.dataset.ops = document.querySelectorAll(".op").length;
"""


def print_page(program: Program, plan: Plan, tokenizer: Tokenizer | None = None) -> str:
    """The HTML page of a program and its plan. The source is read from the file that the ops name, if it is there."""
    facts = _Facts(plan, tokenizer)
    constant = sum(len(op.ids) for op in walk(plan.program.body) if isinstance(op, Tokens))
    summary = f"{len(plan.gens)} gens, {len(plan.selects)} selects, {constant} constant tokens, "
    summary += f"{len(plan.static_prefix)} of them before the first generation. A run: {facts.run}"
    title = html.escape(program.title)
    return "\n".join(
        [
            f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>',
            f"<style>{_STYLE}</style></head><body>",
            f"<header><h1>{title}</h1>{html.escape(summary)}</header><main>",
            f'<section id="source">{"".join(_source(program))}</section>',
            f'<section id="program">{"".join(_ops(program.body, facts))}</section>',
            f"</main><script>{_SCRIPT}</script></body></html>",
        ]
    )


def _source(program: Program) -> Iterator[str]:
    """The source lines that the program's ops come from, from the first to the last."""
    places = [op.where for op in walk(program.body) if op.where is not None]
    if program.where is not None:
        places.append(program.where)
    files = sorted({place.file for place in places})
    for file in files:
        lines = [place.line for place in places if place.file == file]
        try:
            text = Path(file).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError):
            yield f'<div class="row">{html.escape(file)} is not there to be shown</div>'
            continue
        for number in range(max(min(lines), 1), min(max(lines), len(text)) + 1):
            line = html.escape(text[number - 1])
            yield f'<div class="row" data-line="{html.escape(file)}:{number}"><i>{number:>4} </i>{line}</div>'


class _Facts:
    """What the page says of ops besides their text: what is known of gens and selects, and costs."""

    def __init__(self, plan: Plan, tokenizer: Tokenizer | None) -> None:
        self.explained = dict(zip((facts.out for facts in plan.facts), explain(plan, tokenizer), strict=True))
        self.tokenizer = tokenizer
        self.static = {facts.out: facts.num_static_tokens for facts in plan.facts}
        self.nodes = {facts.out: facts.num_nodes for facts in plan.selects}
        cost = budget(plan.program, tokenizer)
        self.sites: dict[Ref, Site] = {}
        for site in cost.sites:
            known = self.sites.get(site.op.out)
            self.sites[site.op.out] = site if known is None else _either(known, site)
        self.run = (
            f"{cost.requests} requests, {cost.prompt_tokens} prompt tokens, {cost.computed} of them computed, "
            f"{cost.generated_tokens} generated, {cost.forwards} forwards"
        )

    def cost(self, op: AnyOp) -> str:
        """Tokens and forwards of an op, as far as they are known; empty for one that costs nothing by itself."""
        if isinstance(op, Text):
            if not isinstance(op.text, str) or self.tokenizer is None:
                return "tokens: known in the run" if not isinstance(op.text, str) else ""
            return f"about <b>{len(self.tokenizer.encode(op.text))}</b> tokens"
        if not isinstance(op, (Gen, Select)):
            return ""
        site = self.sites.get(op.out)
        prompt = f"prompt <b>{site.prompt}</b> tokens, <b>{self.static.get(op.out, 0)}</b> constant" if site else ""
        if isinstance(op, Select):
            return f"{prompt}; <b>{self.nodes.get(op.out, 0) or 'unknown'}</b> trie tokens in one forward"
        new = dict(op.sampling).get("max_new_tokens", DEFAULT_NEW_TOKENS)
        new = new if isinstance(new, int) else "an unknown number of"
        many = dict(op.sampling).get("n", 1)
        outputs = f" in each of {many} outputs" if many != 1 else ""
        return f"{prompt}; at most <b>{new}</b> new tokens{outputs}, a forward each"


def _either(one: Site, other: Site) -> Site:
    """A gen that stands in several places of the walk."""
    return replace(one, prompt=one.prompt.hull(other.prompt), total=one.total.hull(other.total))


def _ops(body: tuple[AnyOp, ...], facts: _Facts) -> Iterator[str]:
    for op in body:
        kind = op.name if isinstance(op, (Gen, Select)) else ""
        line = f' data-line="{html.escape(str(op.where))}"' if op.where is not None else ""
        values = _values("out", all_defined(op)) + _values("uses", used(op))
        yield f'<div class="op {kind}" style="--stream: {op.stream}"{line}{values}>'
        yield f"<code>{html.escape(_head(op))}</code>"
        if cost := facts.cost(op):
            yield f'<div class="cost">{cost}</div>'
        out = defined(op)
        if out is not None and out in facts.explained:
            item = facts.explained[out]
            yield "<ul>"
            yield from (f'<li class="gain">{html.escape(gain)}</li>' for gain in item.gains)
            yield from (f'<li class="limit">{html.escape(limit)}</li>' for limit in item.limits)
            yield "</ul>"
        if isinstance(op, Switch):
            for case in op.cases:
                yield from _case(case, facts)
        elif isinstance(op, (Role, Scope, Loop)):
            yield '<div class="body">'
            yield from _ops(op.body, facts)
            yield "</div>"
        yield "</div>"


def _values(name: str, refs: Iterable[Ref]) -> str:
    ids = " ".join(str(ref.id) for ref in dict.fromkeys(refs))
    return f' data-{name}="{ids}"' if ids else ""


def _case(case: Case, facts: _Facts) -> Iterator[str]:
    yield f'<div class="case">case {html.escape(operand_text(case.value))}</div><div class="body">'
    yield from _ops(case.body, facts)
    yield "</div>"


def _head(op: AnyOp) -> str:
    """An op in the text form, without its regions, and with its stream."""
    bare = replace(op, cases=()) if isinstance(op, Switch) else map_regions(op, lambda body: ())
    text = print_op(bare).removesuffix(" { }")
    return text if op.stream == 0 or text.startswith("[") else f"[{op.stream}] {text}"


def print_dot(program: Program) -> str:
    """The program as a graph in the DOT language: an edge for each value used, dashed edges in program order."""
    lines = [f"digraph {string_text(program.title)} {{", '  node [shape=box, fontname="monospace"];']
    makers: dict[int, int] = {}
    last: dict[int, int] = {}
    for number, op in enumerate(walk(program.body)):
        label = _head(op)
        label = label if len(label) <= 60 else label[:57] + "..."
        lines.append(f"  op{number} [label={_dot_string(label)}, tooltip={_dot_string(f'{op.where or op_name(op)}')}];")
        if op.stream in last:
            lines.append(f"  op{last[op.stream]} -> op{number} [style=dashed];")
        for ref in dict.fromkeys(used(op)):
            if ref.id in makers:
                lines.append(f"  op{makers[ref.id]} -> op{number} [label={_dot_string(f'%{ref.id}')}];")
        last[op.stream] = number
        last.update(dict.fromkeys(new_streams(op), number))
        if (out := defined(op)) is not None:
            makers[out.id] = number
    return "\n".join([*lines, "}"]) + "\n"


def _dot_string(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
