"""Chat templates: rendering messages as transformers does, and the text around one message of a conversation."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any

from ..errors import TemplateError
from .sandbox import render_template

_REASONING_NAMES = ("reasoning_content", "thinking", "reasoning")


def _plain(value: Any) -> Any:
    """`value` in JSON's own types: a template never sees an object with methods of its own."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(_plain, value)) if type(value) in (list, tuple) else [_plain(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if callable(getattr(value, "model_dump", None)):
        return _plain(value.model_dump())
    return f"<{type(value).__name__}>"


def _message(message: Any) -> dict[str, Any]:
    if isinstance(message, Mapping):
        message = {key: value for key, value in message.items() if value is not None}
    plain = _plain(message)
    if not isinstance(plain, dict):
        raise TemplateError(f"a chat message must be a mapping with a role and a content, not {message!r}")
    reasoning = next((plain[name] for name in _REASONING_NAMES if plain.get(name) is not None), None)
    if reasoning is not None:
        plain = {"thinking": reasoning, **plain, "reasoning_content": reasoning}
    return plain


def is_plain_content(content: str) -> bool:
    """Whether `fragments(..., plain=True)` speaks of this content: some text, no white space around it, no
    `<think>` part (templates drop those from earlier turns)."""
    return content != "" and content == content.strip() and "<think>" not in content and "</think>" not in content


@dataclasses.dataclass(frozen=True, slots=True)
class _Finding:
    """What probing one role sequence found: the fragments, or why there are none."""

    fragments: tuple[str, str] | None
    reason: str = ""


class ChatTemplate:
    """A model's Jinja chat template. Immutable; thread-safe. Equal in rendering to transformers' `apply_chat_template`.

    `source` is the template, or several by name: "default", and "tool_use" for conversations with tools.
    """

    def __init__(self, source: str | Mapping[str, str], special_texts: Mapping[str, str] | None = None) -> None:
        """`special_texts`: bos_token, eos_token and so on, which templates may write."""
        self.sources: dict[str, str] = {"default": source} if isinstance(source, str) else dict(source)
        self._special_texts = dict(special_texts or {})
        self._findings: dict[tuple[tuple[str, ...], bool | None, date | None], _Finding] = {}
        self._lock = threading.Lock()
        self._takes_parts: bool | None = None

    def source(self, tools: object = None) -> str:
        """The template that renders a conversation with or without tools."""
        if tools is not None and "tool_use" in self.sources:
            return self.sources["tool_use"]
        if "default" in self.sources:
            return self.sources["default"]
        names = ", ".join(sorted(self.sources))
        raise TemplateError(f"the model has several chat templates and none is the default; it has {names}")

    def render(
        self,
        messages: Sequence[Any],
        add_generation_prompt: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **kwargs: Any,
    ) -> str:
        """The conversation as text. `tools` are JSON schemas; `kwargs` are variables for the template
        (`enable_thinking`, `documents`, ...). Raises TemplateError: no message, or what the template complains of."""
        if not messages:
            raise TemplateError("there is no message to render: a conversation needs at least one")
        return self._render(list(map(_message, messages)), add_generation_prompt, tools, kwargs)

    @property
    def takes_parts(self) -> bool:
        """Whether the template wants contents as lists of parts, and leaves out text alone: models that see have such.

        Contents that are text are given to it as [{"type": "text", "text": ...}].
        """
        if self._takes_parts is None:
            alone: list[dict[str, Any]] = [{"role": "user", "content": "content"}]
            parts = [{"role": "user", "content": [{"type": "text", "text": "content"}]}]
            self._takes_parts = not self._shows(alone) and self._shows(parts)
        return self._takes_parts

    def _shows(self, messages: list[dict[str, Any]]) -> bool:
        try:
            return "content" in self._rendered(messages, False, None, {})
        except TemplateError:
            return False

    def _render(self, messages: list[dict[str, Any]], prompt: bool, tools: Any, kwargs: Mapping[str, Any]) -> str:
        if self.takes_parts:
            messages = [
                {**message, "content": [{"type": "text", "text": message["content"]}]}
                if isinstance(message.get("content"), str)
                else message
                for message in messages
            ]
        return self._rendered(messages, prompt, tools, kwargs)

    def _rendered(self, messages: list[dict[str, Any]], prompt: bool, tools: Any, kwargs: Mapping[str, Any]) -> str:
        for tool in tools or ():
            if not isinstance(tool, Mapping):
                raise TemplateError(f"a tool must be a JSON schema (a mapping), not {tool!r}")
        variables = {
            "documents": None,
            **self._special_texts,
            **_plain(kwargs),
            "messages": messages,
            "tools": _plain(tools),
            "add_generation_prompt": prompt,
        }
        return render_template(self.source(tools), variables)

    def fragments(self, roles: tuple[str, ...], plain: bool = False) -> tuple[str, str] | None:
        """(prefix, suffix): what the template writes around the content of the last message of such a conversation.

        Where this and every shorter role sequence have fragments, prefix + content + suffix of all messages, one
        after the other, equals `render(messages)` for any contents (with `plain`: for contents that
        `is_plain_content` accepts, as many templates strip white space); and the prefix of an assistant message
        equals the generation prompt. A leading system message that is rendered together with the first user message
        counts from that message on. None if the template does not keep to this: then use `render`.
        """
        return self._find(roles, plain).fragments

    def explain(self, roles: tuple[str, ...], plain: bool = False) -> str:
        """Why `fragments(roles)` is None, as a clause of a sentence; "" if it is not."""
        return self._find(roles, plain).reason

    def append_fragments(self, roles: tuple[str, ...]) -> tuple[str, str]:
        """(prefix, suffix) for a history that is only ever appended to, also where `fragments` is None.

        They are what the template writes around the last message when it renders exactly this conversation; an
        assistant message starts as the generation prompt does. `explain` says how the whole then differs from
        `render`. Raises TemplateError if the template cannot render such a conversation even without its leading
        system message.
        """
        found = self.fragments(roles) or self.fragments(roles, plain=True)
        if found is not None:
            return found
        key = (roles, None, self._today())
        with self._lock:
            kept = self._findings.get(key)
        if kept is None:
            kept = _Finding(self._last_fragments(roles))
            with self._lock:
                self._findings[key] = kept
        assert kept.fragments is not None
        return kept.fragments

    def _last_fragments(self, roles: tuple[str, ...]) -> tuple[str, str]:
        contents = _contents("first", len(roles))
        try:
            text = self._text_of(roles, contents)
            opened = text.rpartition(contents[-1])[0]
            if roles[-1] == "assistant" and len(roles) > 1:
                opened = self._render(_messages(roles[:-1], contents), True, None, {})
            before = ""  # the text up to the end of the message before
            if len(roles) > 1:
                before = opened.rpartition(contents[-2])[0] + contents[-2] + self.append_fragments(roles[:-1])[1]
            if (
                contents[-1] in text
                and opened.startswith(before)
                and not any(c in opened[len(before) :] for c in contents)
            ):
                return opened[len(before) :], text.rpartition(contents[-1])[2]
            complaint = f"the content of the {roles[-1]} message does not appear in it on its own"
        except TemplateError as error:
            complaint = error.message
        if roles[0] == "system" and len(roles) > 1:
            return self.append_fragments(roles[1:])
        raise TemplateError(f"the chat template cannot render a {' / '.join(roles)} conversation: {complaint}")

    def _today(self) -> date | None:
        """What the fragments of a template that writes the date depend on."""
        return date.today() if any("strftime_now" in source for source in self.sources.values()) else None

    def _find(self, roles: tuple[str, ...], plain: bool) -> _Finding:
        if not roles:
            raise TemplateError("fragments() needs at least one role")
        key = (roles, plain, self._today())
        with self._lock:
            found = self._findings.get(key)
        if found is None:
            found = self._probe(roles, plain)
            with self._lock:
                self._findings[key] = found
        return found

    def _probe(self, roles: tuple[str, ...], plain: bool) -> _Finding:
        before: list[tuple[str, str]] = []
        for i in range(1, len(roles)):
            shorter = self._find(roles[:i], plain)
            if shorter.fragments is None:
                return shorter
            before.append(shorter.fragments)
        try:
            found = self._cut_out(roles, before)
            if isinstance(found, tuple):
                why = self._check(roles, [*before, found], plain)
                return _Finding(None, why) if why else _Finding(found)
        except TemplateError as error:
            found = error.message
        if roles == ("system",):
            return self._joined_system()
        return _Finding(None, found)

    def _cut_out(self, roles: tuple[str, ...], before: list[tuple[str, str]]) -> tuple[str, str] | str:
        """The fragments as the first probe shows them, or what stands in the way."""
        contents = _contents("first", len(roles))
        text = self._text_of(roles, contents)
        start = "".join(prefix + content + suffix for (prefix, suffix), content in zip(before, contents, strict=False))
        if not text.startswith(start):
            return f"it renders earlier messages differently once a {roles[-1]} message follows: {_differ(start, text)}"
        rest = text[len(start) :]
        if rest.count(contents[-1]) != 1:
            return f"the content of the {roles[-1]} message does not appear in it once and unchanged"
        prefix, _, suffix = rest.partition(contents[-1])
        return prefix, suffix

    def _joined_system(self) -> _Finding:
        """Fragments of a leading system message that only shows together with the first user message."""
        contents = _contents("first", 2)
        try:
            text = self._text_of(("system", "user"), contents)
        except TemplateError as error:
            return _Finding(None, error.message)
        if any(text.count(content) != 1 for content in contents) or text.index(contents[0]) > text.index(contents[1]):
            return _Finding(None, "the content of the system message does not appear in it once and unchanged")
        prefix, _, rest = text.partition(contents[0])
        return _Finding((prefix, rest.partition(contents[1])[0]))

    def _check(self, roles: tuple[str, ...], parts: list[tuple[str, str]], plain: bool) -> str:
        """Whether all probes agree with the fragments; "" or how they differ."""
        for style in ("first", "lines", "last empty", "all empty", "spaces", "thoughts"):
            if plain and style not in ("first", "lines"):
                continue
            contents = _contents(style, len(roles))
            expected = "".join(p + content + s for (p, s), content in zip(parts, contents, strict=True))
            text = self._text_of(roles, contents)
            if text != expected:
                return f"it changes {_STYLES[style]}: {_differ(expected, text)}"
            if roles[-1] == "assistant":
                messages = _messages(roles[:-1], contents)
                prompt = self._render(messages, True, None, {})
                opened = expected[: len(expected) - len(contents[-1]) - len(parts[-1][1])]
                if prompt != opened:
                    return f"its generation prompt is not how it begins an assistant message: {_differ(opened, prompt)}"
        return ""

    def _text_of(self, roles: tuple[str, ...], contents: list[str]) -> str:
        return self._render(_messages(roles, contents), False, None, {})


_STYLES = {
    "first": "the messages",
    "lines": "contents of several lines",
    "last empty": "an empty message",
    "all empty": "empty messages",
    "spaces": "white space around a content",
    "thoughts": "contents with <think> parts",
}


def _contents(style: str, count: int) -> list[str]:
    """Contents that no template writes by itself, one per message."""
    if style == "lines":
        return [f"Ligne {i}a: «{i}»\n\n  Zeile {i}b" for i in range(count)]
    if style == "spaces":
        return [f" \n  wq{i} \n\n " for i in range(count)]
    if style == "thoughts":
        return [f"<think>tz{i}</think>\n\nvy{i}" for i in range(count)]
    if style == "all empty":
        return [""] * count
    contents = [f"Qk{i}xq" for i in range(count)]
    return [*contents[:-1], ""] if style == "last empty" else contents


def _messages(roles: Sequence[str], contents: Sequence[str]) -> list[dict[str, Any]]:
    return [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]


def _differ(expected: str, actual: str) -> str:
    """The first difference of two texts, with a little of what stands around it."""
    at = next(
        (i for i, (a, b) in enumerate(zip(expected, actual, strict=False)) if a != b), min(len(expected), len(actual))
    )
    start = max(at - 12, 0)
    return f"{actual[start : at + 24]!r} instead of {expected[start : at + 24]!r} at character {at}"
