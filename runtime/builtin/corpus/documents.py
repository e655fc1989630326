"""What a training document is, how chats are written down, and how documents are held out.

A `Document` is made by one family function and read by the trainer and the evaluation; nothing changes it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

END = "<|endoftext|>"
IM_START = "<|im_start|>"
IM_END = "<|im_end|>"

EXPLAIN = "Explain your answer."  # the system prompt of answers that give their reason first

HELD_OUT_SHARE = 16  # one key in so many is never trained on
ALWAYS = "!"  # a key that ends so is always trained on: texts known by heart, which have no combinations


@dataclass(frozen=True, slots=True)
class Part:
    """A stretch of text; `is_answer` says that the model should write it."""

    text: str
    is_answer: bool


@dataclass(frozen=True, slots=True)
class Document:
    """Parts in order, and the key (the combination of choices) that decides whether it is held out."""

    parts: tuple[Part, ...]
    key: str

    @property
    def text(self) -> str:
        return "".join(part.text for part in self.parts)

    @property
    def is_held_out(self) -> bool:
        return is_held_out(self.key)


Maker = Callable[[Random], Document]

def is_held_out(key: str) -> bool:
    return not key.endswith(ALWAYS) and hashlib.sha256(key.encode()).digest()[0] % HELD_OUT_SHARE == 0


def completion(key: str, *texts: str, end: str = END) -> Document:
    """Plain text; prompts and answers alternate, a prompt first; the last answer ends the document."""
    parts = [Part(text, is_answer=i % 2 == 1) for i, text in enumerate(texts)]
    last = parts.pop()
    if last.text.endswith("\n"):  # a line of several: whether another one follows is not for the model to know
        parts += [last, Part(end, is_answer=False)]
    else:
        parts.append(Part(last.text + end, last.is_answer))
    return Document(tuple(parts), key)


def chat(key: str, *turns: str, system: str | None = None) -> Document:
    """A conversation; user and assistant alternate, the user first."""
    opening = "" if system is None else message("system", system)
    parts: list[Part] = []
    for i, text in enumerate(turns):
        if i % 2 == 0:
            parts.append(Part(f"{opening}{message('user', text)}{IM_START}assistant\n", is_answer=False))
            opening = "\n"
        else:
            parts.append(Part(text + IM_END, is_answer=True))
    return Document(tuple(parts), key)


Asks = Sequence[tuple[str, str]]  # questions and answers


def series(key: str, context: str, asks: Asks, form: str) -> Document:
    """A text and questions about it as plain text; `form` holds a question, as in "Q: {}\\nA:"."""
    texts: list[str] = []
    for i, (question, answer) in enumerate(asks):
        texts += [("\n" if i else context) + form.format(question), f" {answer}"]
    return completion(key, *texts)


def chat_series(key: str, context: str, asks: Asks, system: str | None) -> Document:
    """The same as a chat; the text opens the first question."""
    turns = [part for ask in asks for part in ask]
    return chat(key, context + turns[0], *turns[1:], system=system)


def message(role: str, content: str) -> str:
    return f"{IM_START}{role}\n{content}{IM_END}\n"


def either(rng: Random, key: str, question: str, answer: str, *, before: str = "Q: ", after: str = "\nA:") -> Document:
    """The same question as a chat or as plain text."""
    if rng.random() < 0.5:
        return chat(key, question, answer, system=some_system(rng))
    return completion(key, f"{before}{question}{after}", f" {answer}")


def some_system(rng: Random) -> str | None:
    """A system prompt that changes nothing, or none."""
    return rng.choice([None, None, None, "You are a helpful assistant.", "You are dslc-tiny.", "Answer briefly."])
