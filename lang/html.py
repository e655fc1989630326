"""A state as HTML: tokens coloured by where they came from, branches as tabs, variables with their numbers.

No script and nothing from elsewhere: the tabs are radio buttons, so a saved page and a cell of a notebook are the same.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import time
from dataclasses import replace
from html import escape
from typing import TYPE_CHECKING, Any

from .display import KINDS, Branch, Piece, branches, branches_of
from .outside import Outside

if TYPE_CHECKING:
    from .state import ProgramState

_NAMES = itertools.count(1)

STYLE = """
.dslc-state { font: 13px/1.5 ui-sans-serif, system-ui, sans-serif; color: #1d2430; background: #fff; padding: 8px;
  max-width: 72em; }
.dslc-state pre { font: 13px/1.6 ui-monospace, Menlo, Consolas, monospace; white-space: pre-wrap; margin: 6px 0;
  padding: 8px; border: 1px solid #d8dde6; border-radius: 6px; overflow-wrap: anywhere; }
.dslc-state .cached { background: #e3e9f2; color: #46536a; }
.dslc-state .prompt { background: #f3f0df; }
.dslc-state .sampled { background: #cfeed6; }
.dslc-state .forced { background: #ffe0b3; }
.dslc-state .chosen { background: #dcd3f7; }
.dslc-state .legend span { padding: 0 6px; margin-right: 6px; border-radius: 3px; }
.dslc-state .tok { border-radius: 2px; }
.dslc-state .tok:hover { outline: 1px solid #1d2430; }
.dslc-state table { border-collapse: collapse; margin: 4px 0; }
.dslc-state td, .dslc-state th { text-align: left; padding: 2px 10px 2px 0; vertical-align: top; border: 0; }
.dslc-state th { color: #5b6678; font-weight: 500; }
.dslc-state .tab { display: none; }
.dslc-state input.pick { position: absolute; opacity: 0; }
.dslc-state label.pick { display: inline-block; padding: 2px 10px; border: 1px solid #d8dde6; cursor: pointer;
  border-radius: 6px 6px 0 0; }
"""
SHOWN_INFOS = ("prompt_tokens", "cached_tokens", "completion_tokens", "forced_tokens")
LIVE_S = 0.1  # between two pictures of a state that grows, at least
LIVE_SHARE = 0.1  # of the time that goes into making them, at most


def state_html(state: ProgramState) -> str:
    """The state as one element with its style, as a notebook shows it."""
    found = branches(state)
    return _element(found)


def page_html(state: ProgramState, title: str) -> str:
    """A whole page of its own."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title></head>\n'
        f"<body>{state_html(state)}</body></html>\n"
    )


def live_html(found: list[Branch], text: str) -> str:
    """A state that still grows: what is known of it, and its own text so far, whose end is being generated."""
    own = found[0]
    known = sum(len(piece.text) for piece in own.pieces)
    growing = replace(own, pieces=(*own.pieces, Piece(text[known:], "sampled")))
    return _element([growing, *found[1:]])


def show(state: ProgramState) -> None:
    """Show a state in a notebook: at once, or growing while its program streams. Raises what stopped that.

    Leaving early, as when the cell is interrupted, ends the program.
    """
    notebook: Any = importlib.import_module("IPython.display")
    sink = state.sink
    if not isinstance(sink, Outside) or sink.is_ended:
        notebook.display(notebook.HTML(state_html(state)))
        return
    shown = notebook.display(notebook.HTML(live_html([Branch("", (), {}, {})], "")), display_id=True)
    text, next_at = "", 0.0
    pieces: Any = state.text_iter()
    try:
        with contextlib.closing(pieces):  # now, not when the traceback of an interrupt is collected
            for piece in pieces:
                text += piece
                began = time.monotonic()
                if began < next_at:
                    continue
                found = sink.while_running(lambda executor: branches_of(executor, state.stream))
                if found is not None:
                    shown.update(notebook.HTML(live_html(found, text)))
                now = time.monotonic()
                next_at = now + max(LIVE_S, (now - began) / LIVE_SHARE)
    finally:
        shown.update(notebook.HTML(state_html(state)))


def _element(found: list[Branch]) -> str:
    name = f"dslc{next(_NAMES)}"
    if len(found) == 1:
        return f'<style>{STYLE}</style><div class="dslc-state" id="{name}">{_legend(found)}{_tab(found[0])}</div>'
    rules = "".join(
        f"#{name}-{i}:checked ~ #{name}-tab-{i} {{ display: block; }} "
        f"#{name}-{i}:checked + label {{ background: #e3e9f2; }}\n"
        for i in range(len(found))
    )
    picks = "".join(
        f'<input class="pick" type="radio" name="{name}" id="{name}-{i}"{" checked" if not i else ""}>'
        f'<label class="pick" for="{name}-{i}">{"state" if not i else "branch " + escape(branch.path)}</label>'
        for i, branch in enumerate(found)
    )
    tabs = "".join(f'<div class="tab" id="{name}-tab-{i}">{_tab(branch)}</div>' for i, branch in enumerate(found))
    body = f"{_legend(found)}<div>{picks}{tabs}</div>"
    return f'<style>{STYLE}{rules}</style><div class="dslc-state" id="{name}">{body}</div>'


def _legend(found: list[Branch]) -> str:
    kinds = {piece.kind for branch in found for piece in branch.pieces}
    parts = (f'<span class="{kind}">{escape(meaning)}</span>' for kind, meaning in KINDS.items() if kind in kinds)
    return f'<div class="legend">{"".join(parts)}</div>'


def _tab(branch: Branch) -> str:
    return f"<pre>{''.join(map(_piece, branch.pieces))}</pre>{_variables(branch)}"


def _piece(piece: Piece) -> str:
    if not piece.text:
        return ""
    title = [KINDS[piece.kind]]
    if piece.var is not None:
        title.insert(0, piece.var)
    if piece.token_id >= 0:
        title.append(f"token {piece.token_id}")
    if piece.logprob is not None:
        title.append(f"log-prob {piece.logprob:.3f}")
    var = f' data-var="{escape(piece.var)}"' if piece.var is not None else ""
    return f'<span class="tok {piece.kind}"{var} title="{escape(", ".join(title))}">{escape(piece.text)}</span>'


def _variables(branch: Branch) -> str:
    if not branch.variables:
        return ""
    rows = "".join(
        f"<tr><td><b>{escape(name)}</b></td><td>{escape(_short(value))}</td><td>{escape(_info(branch.infos.get(name)))}"
        "</td></tr>"
        for name, value in branch.variables.items()
    )
    return f"<table><tr><th>variable</th><th>value</th><th>tokens</th></tr>{rows}</table>"


def _info(info: Any) -> str:
    if not isinstance(info, dict):
        return ""
    reason = info.get("finish_reason")
    parts = [f"{info[name]} {name.split('_')[0]}" for name in SHOWN_INFOS if info.get(name)]
    return ", ".join([*parts, f"ended by {reason['type']}"] if isinstance(reason, dict) else parts)


def _short(value: Any, limit: int = 200) -> str:
    shown = value if isinstance(value, str) else repr(value)
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"
