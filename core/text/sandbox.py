"""A Jinja environment for chat templates: what transformers gives them, and limits on what they may use.

A template comes with a model's files, so it is other people's code. The sandbox keeps it from Python's internals; the
limits (steps of loops and macros, characters made) keep it from running for ever or filling the memory.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from typing import Any

from ..errors import TemplateError

MAX_STEPS = 1_000_000
MAX_CHARS = 1 << 26
_MAX_WIDTH = 1_000_000


class _Budget:
    """What one rendering may still use."""

    __slots__ = ("chars", "steps")

    def __init__(self) -> None:
        self.steps = MAX_STEPS
        self.chars = MAX_CHARS


_budget: ContextVar[_Budget | None] = ContextVar("dslc_template_budget", default=None)


def _spend_step() -> str:
    budget = _budget.get()
    if budget is not None:
        budget.steps -= 1
        if budget.steps < 0:
            raise TemplateError(f"the chat template ran more than {MAX_STEPS} loop steps")
    return ""


def _spend_chars(count: int) -> None:
    budget = _budget.get()
    if budget is not None:
        budget.chars -= count
        if budget.chars < 0:
            raise TemplateError(f"the chat template made more than {MAX_CHARS} characters of text")


def _size(value: object) -> int:
    return len(value) if isinstance(value, (str, list, tuple)) else 0


def _check_operator(operator: str, left: Any, right: Any) -> None:
    if operator == "+":
        _spend_chars(_size(left) + _size(right))
    elif operator == "*":
        if isinstance(left, int) and isinstance(right, int):
            _spend_chars((left.bit_length() + right.bit_length()) // 8)
        else:
            _spend_chars(
                _size(left) * right if isinstance(right, int) else _size(right) * left if isinstance(left, int) else 0
            )
    elif operator == "**":
        if isinstance(left, int) and isinstance(right, int):
            _spend_chars(left.bit_length() * max(right, 0) // 8)
    elif isinstance(left, str):
        _check_widths(left, right)


def _check_widths(text: str, *arguments: Any) -> None:
    """Refuse widths and precisions in a format string that would make gigabytes out of a few characters."""
    flat = [item for value in arguments for item in (value if isinstance(value, (tuple, list)) else (value,))]
    widths = [int(digits) for digits in re.findall(r"\d{1,20}", text)]
    if any(width > _MAX_WIDTH for width in widths) or (
        "*" in text and any(isinstance(item, int) and abs(item) > _MAX_WIDTH for item in flat)
    ):
        raise TemplateError(f"the chat template formats to a width above {_MAX_WIDTH}")
    _spend_chars(len(text) + sum(map(_size, flat)))


def _check_text_call(name: str, text: str, arguments: tuple[Any, ...], options: Mapping[str, Any]) -> None:
    """Before a method or filter makes text out of `text`: refuse widths, count the characters it may make."""
    values = (*arguments, *options.values())
    if name in ("format", "format_map"):
        _check_widths(text, *values)
    if any(isinstance(value, int) and abs(value) > _MAX_WIDTH for value in values):
        raise TemplateError(f"the chat template calls {name} with a number above {_MAX_WIDTH}")
    strings = [value for value in values if isinstance(value, str)]
    if name == "replace" and len(strings) >= 2:
        _spend_chars(len(text) + text.count(strings[0]) * len(strings[1]))
    elif name == "join" and arguments and isinstance(arguments[0], (list, tuple)):
        _spend_chars(len(text) * len(arguments[0]) + sum(map(_size, arguments[0])))
    elif name == "indent":
        width = next((value for value in values if isinstance(value, int)), 4)
        _spend_chars(len(text) + text.count("\n") * max([width, *map(len, strings)]))
    else:
        _spend_chars(len(text))


def _limited_filter(name: str, function: Any) -> Any:
    """The filter, with its text argument checked first. Keeps the marks by which Jinja passes a context."""

    @functools.wraps(function)
    def limited(*args: Any, **kwargs: Any) -> Any:
        plain = args[1:] if hasattr(function, "jinja_pass_arg") else args
        value, rest = (plain[0], plain[1:]) if plain else ("", ())
        if name == "join":
            separator = rest[0] if rest and isinstance(rest[0], str) else ""
            items = value if isinstance(value, (list, tuple)) else ()
            _check_text_call("join", separator, (items,), {})
        elif isinstance(value, str):
            _check_text_call(name, value, rest, kwargs)
        result = function(*args, **kwargs)
        _spend_chars(_size(result))
        return result

    return limited


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    text = json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    _spend_chars(len(text))
    return text


def _strftime_now(layout: str) -> str:
    return datetime.now().strftime(layout)  # local time, as templates get it from transformers


class _TemplateDict:
    """`dict` for templates: it makes dicts and has no other attribute to climb along."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


@functools.cache
def environment() -> Any:
    """The one environment. Raises TemplateError if jinja2 is missing."""
    try:
        import jinja2
    except ImportError:
        raise TemplateError("chat templates need the package jinja2: pip install 'jinja2>=3.1.6'") from None
    import jinja2.ext
    import jinja2.nodes
    import jinja2.sandbox
    import jinja2.utils

    class GenerationBlocks(jinja2.ext.Extension):
        """`{% generation %}...{% endgeneration %}` marks what a trainer should learn; here it is its content."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.Scope(body, lineno=line)

    class Namespace(jinja2.utils.Namespace):
        def __init__(*args: Any, **kwargs: Any) -> None:  # so that namespace(self=...) works
            self, values = args[0], dict(*args[1:], **kwargs)
            for name in values:
                Namespace.check(name)
            jinja2.utils.Namespace.__init__(self, values)

        def __setitem__(self, name: str, value: Any) -> None:
            Namespace.check(name)
            super().__setitem__(name, value)

        @staticmethod
        def check(name: Any) -> None:
            if isinstance(name, str) and name.startswith("_"):
                raise jinja2.exceptions.SecurityError(f"a namespace may not hold the underscore name {name!r}")

    class Environment(jinja2.sandbox.ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset(("+", "*", "**", "%"))

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            _check_operator(operator, left, right)
            return super().call_binop(context, operator, left, right)

        def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
            owner = getattr(__obj, "__self__", None)
            if isinstance(owner, str):
                _check_text_call(getattr(__obj, "__name__", ""), owner, args, kwargs)
            result = super().call(__context, __obj, *args, **kwargs)
            _spend_chars(_size(result))
            return result

        def wrap_str_format(self, value: Any) -> Any:
            """`str.format` in its sandboxed form, its widths checked."""
            wrapped = super().wrap_str_format(value)
            if wrapped is None:
                return None

            def limited(*args: Any, **kwargs: Any) -> Any:
                _check_text_call("format", str(value.__self__), args, kwargs)
                return wrapped(*args, **kwargs)

            return limited

        spend_step = staticmethod(_spend_step)

        @staticmethod
        def joined(*parts: Any) -> str:
            texts = [str(part) for part in parts]
            _spend_chars(sum(map(len, texts)))
            return "".join(texts)

    def raise_exception(message: str) -> None:
        raise jinja2.exceptions.TemplateError(message)

    def counted(value: Any) -> Any:
        _spend_chars(_size(value))
        return value

    env = Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[GenerationBlocks, jinja2.ext.loopcontrols],
        finalize=counted,
    )
    env.filters.update({name: _limited_filter(name, function) for name, function in env.filters.items()})
    env.filters["tojson"] = _tojson
    env.globals.update(
        raise_exception=raise_exception, strftime_now=_strftime_now, dict=_TemplateDict(), namespace=Namespace
    )
    return env


def _with_limits(tree: Any) -> Any:
    """The template's tree with a step counted in every loop and macro body and `~` made to count characters."""
    from jinja2 import nodes
    from jinja2.visitor import NodeTransformer

    def call(name: str, arguments: list[Any], line: int) -> Any:
        return nodes.Call(nodes.EnvironmentAttribute(name), arguments, [], None, None, lineno=line)

    class Limiter(NodeTransformer):
        def visit_For(self, node: Any) -> Any:
            self.generic_visit(node)
            node.body.insert(0, nodes.ExprStmt(call("spend_step", [], node.lineno), lineno=node.lineno))
            return node

        visit_Macro = visit_For

        def visit_Concat(self, node: Any) -> Any:
            self.generic_visit(node)
            return call("joined", node.nodes, node.lineno)

    return Limiter().visit(tree)


@contextmanager
def _fresh_budget() -> Iterator[None]:
    token = _budget.set(_Budget())
    try:
        yield
    finally:
        _budget.reset(token)


@functools.lru_cache(maxsize=64)
def compile_template(source: str) -> Any:
    """A jinja2 Template ready to render. Raises TemplateError with the line of a syntax error."""
    env = environment()
    import jinja2

    try:
        with _fresh_budget():  # constants are folded here
            tree = _with_limits(env.parse(source))
            code = env.compile(tree.set_environment(env))
    except jinja2.TemplateSyntaxError as error:
        raise TemplateError(f"the chat template has a syntax error in line {error.lineno}: {error.message}") from None
    return env.template_class.from_code(env, code, env.make_globals(None))


def render_template(source: str, variables: Mapping[str, Any]) -> str:
    """The rendered text. Raises TemplateError with the template's own complaint, or with what it may not do."""
    template = compile_template(source)
    import jinja2

    with _fresh_budget():
        try:
            return str(template.render(variables))
        except TemplateError:
            raise
        except jinja2.exceptions.SecurityError as error:
            raise TemplateError(f"the chat template was refused by the sandbox: {error}") from None
        except jinja2.TemplateError as error:
            raise TemplateError(f"the chat template refuses these messages: {error}") from None
        except (TypeError, ValueError, KeyError, AttributeError, IndexError, ArithmeticError, RecursionError) as error:
            raise TemplateError(
                f"the chat template failed on these messages: {type(error).__name__}: {error}"
            ) from None
