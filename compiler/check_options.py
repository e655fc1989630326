"""More rules of `dslc check`: what the options of gens, their constraints and the backend make of each other."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.errors import SourceLoc
from .check import Found, _rule, _strings, _Subject
from .explain import tokens_of_media
from .ir import Gen, Media, Select, walk
from .passes.base import CompileOptions, Context
from .passes.drop_unobserved import run as drop_unobserved

if TYPE_CHECKING:
    from ..core.constraint import Constraint

ROLES = ("system", "user", "assistant")


@_rule("empty-match", "warning", "A constraint that only the empty text meets, so that nothing is generated.")
def _empty_match(subject: _Subject) -> Found:
    for op in subject.ops:
        language = subject.language(op)
        if language is not None and language.longest == 0:
            yield "the regex allows the empty text only: nothing can be generated", op.where


@_rule("stop-forced", "error", "A stop string inside the text that a constraint forces: it always cuts that short.")
def _stop_forced(subject: _Subject) -> Found:
    tokenizer = subject.model.tokenizer
    for op in subject.ops:
        stops = _strings(dict(op.sampling).get("stop", ())) if isinstance(op, Gen) else ()
        constraint = _constraint(op) if isinstance(op, Gen) else None
        if not stops or constraint is None or constraint.kind == "regex" or tokenizer is None:
            continue
        from .constraints import compile_constraint

        compiled = compile_constraint(constraint, tokenizer.vocabulary, encode=tokenizer.encode)
        forced = tokenizer.decode(compiled.start().forced())
        for stop in stops:
            if stop in forced:
                yield f"every match begins with {forced!r}, which the stop string {stop!r} cuts", op.where


def _constraint(op: Gen) -> Constraint | None:
    spec = op.constraint
    return spec.resolve(spec.source) if spec is not None and isinstance(spec.source, str) else None


@_rule("backend", "error", "What the backend cannot do: a kind of media, of constraint, choices, log-probs.")
def _backend(subject: _Subject) -> Found:
    able = subject.model.backend
    if able is None:
        return
    for op in subject.ops:
        if isinstance(op, Media) and op.kind not in able.media:
            yield f"the backend {able.name!r} takes no {op.kind}s", op.where
        elif isinstance(op, Select) and not able.scoring:
            yield f"the backend {able.name!r} cannot score choices", op.where
        elif isinstance(op, Gen):
            if op.constraint is not None and op.constraint.kind not in able.constraints:
                yield f"the backend {able.name!r} cannot enforce a constraint of kind {op.constraint.kind}", op.where
            if op.logprobs is not None and not able.logprobs:
                yield f"the backend {able.name!r} gives no log-probs", op.where


@_rule("picture-tokens", "note", "How many tokens a picture or video takes in the prompts of the model.")
def _picture_tokens(subject: _Subject) -> Found:
    pictures = subject.model.pictures
    for op in subject.ops if pictures is not None else ():
        if isinstance(op, Media) and pictures is not None and op.kind in pictures.kinds:
            yield f"the {op.kind} takes {tokens_of_media(op, pictures)}", op.where


@_rule("unread-gen", "warning", "With outputs=: a gen or select that no output needs, so that it is not run.")
def _unread_gen(subject: _Subject) -> Found:
    if subject.outputs is None or not subject.program.is_whole:
        return
    context = Context(options=CompileOptions(outputs=subject.outputs))
    kept = {op.out for op in walk(drop_unobserved(subject.program, context).body) if isinstance(op, (Gen, Select))}
    for op in subject.ops:
        if isinstance(op, (Gen, Select)) and op.out not in kept:
            name = f"{op.var!r}" if op.var is not None else "this"
            yield f"nobody reads {name}: none of the outputs {', '.join(subject.outputs) or '()'} needs it", op.where


@_rule("open-role", "warning", "A chat turn that is begun with role_begin() and never ended.")
def _open_role(subject: _Subject) -> Found:
    where = subject.program.where
    function = _function_at(where) if where is not None else None
    if function is None or where is None or _hands_its_state_on(function):
        return  # another function may end it
    calls = dict(_calls(function))
    for role in ROLES:
        if f"{role}_begin" in calls and f"{role}_end" not in calls:
            line = calls[f"{role}_begin"]
            yield f"the {role} turn is begun here and never ended", SourceLoc(where.file, line, where.function)


def _function_at(where: SourceLoc) -> ast.FunctionDef | ast.AsyncFunctionDef | None:
    """The function whose definition, decorators included, spans this line of a Python file."""
    path = Path(where.file)
    if path.suffix != ".py" or not path.is_file():
        return None
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return None
    found = None
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            first = min([node.lineno, *(item.lineno for item in node.decorator_list)])
            if first <= where.line <= node.lineno and node.args.args:
                found = node
    return found


def _hands_its_state_on(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether the program's state, or a fork of it, is an argument of some call, or returned or kept."""
    state = function.args.args[0].arg
    for node in ast.walk(function):
        if isinstance(node, ast.Call):
            given = [*node.args, *(keyword.value for keyword in node.keywords)]
            if any(isinstance(item, ast.Name) and item.id == state for item in given):
                return True
        if isinstance(node, (ast.Assign, ast.Return)) and isinstance(node.value, ast.Name) and node.value.id == state:
            return True
    return False


def _calls(function: ast.AST) -> Iterator[tuple[str, int]]:
    """(last name, line) of each call."""
    for node in ast.walk(function):
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Attribute):
                yield node.func.attr, node.lineno
            elif isinstance(node.func, ast.Name):
                yield node.func.id, node.lineno
