"""Where a model's reasoning stands in its text, and how to take it out of a text that arrives in pieces."""

from __future__ import annotations

from dataclasses import dataclass

REASONING_SUFFIX = "_reasoning_content"  # of the variable that holds the reasoning of a gen


@dataclass(frozen=True, slots=True)
class ReasoningFormat:
    """Where reasoning begins and ends. `is_open`: the prompt has opened it already, so output begins inside."""

    begin: str
    end: str
    is_open: bool = False

    def split(self, text: str) -> tuple[str, str]:
        """(reasoning, answer) of a whole text. Without the end marker a begun reasoning takes all of it."""
        body = text.lstrip()
        if body.startswith(self.begin):
            rest = body[len(self.begin) :]
        elif self.is_open:
            rest = text
        else:
            return "", text
        reasoning, ended, answer = rest.partition(self.end)
        return (reasoning.strip("\n"), answer.lstrip("\n")) if ended else (reasoning.strip("\n"), "")


_THINK = ReasoningFormat("<think>", "</think>")
FORMATS: dict[str, ReasoningFormat] = {
    "deepseek-r1": ReasoningFormat("<think>", "</think>", is_open=True),
    "deepseek-v3": _THINK,
    "glm45": _THINK,
    "qwen3": _THINK,
    "qwen3-thinking": ReasoningFormat("<think>", "</think>", is_open=True),
    "kimi": ReasoningFormat("◁think▷", "◁/think▷"),
    "step3": ReasoningFormat("<think>", "</think>", is_open=True),
}


class Splitter:
    """`split` over a text that arrives in pieces: never shows a marker, or part of one, as text."""

    def __init__(self, form: ReasoningFormat) -> None:
        self._form = form
        self._held = ""
        self._where = "start"
        self._is_begun = False  # something of the present part was shown: line ends count from then on

    def feed(self, piece: str) -> tuple[str, str]:
        """What this piece adds to (reasoning, answer)."""
        self._held += piece
        reasoning = answer = ""
        if self._where == "start":
            self._start()
        if self._where == "reasoning":
            reasoning = self._reasoning()
        if self._where == "answer":
            answer, self._held = self._shown(self._held), ""
        return reasoning, answer

    def _start(self) -> None:
        """Find out whether the text begins with reasoning."""
        begin = self._form.begin
        text = self._held.lstrip()
        if text.startswith(begin):
            self._held = text[len(begin) :]
            self._where = "reasoning"
        elif not begin.startswith(text):
            self._where = "reasoning" if self._form.is_open else "answer"
            self._is_begun = not self._form.is_open

    def _reasoning(self) -> str:
        """The reasoning before the end marker; without it, all that cannot be its beginning."""
        end = self._form.end
        text, found, rest = self._held.partition(end)
        if found:
            shown = self._shown(text.rstrip("\n"))
            self._held = rest
            self._where = "answer"
            self._is_begun = False
            return shown
        keep = max((k for k in range(1, len(end)) if text.endswith(end[:k])), default=0)
        # Line ends are held back too: those before the end marker belong to it.
        text = text[: len(text) - keep].rstrip("\n")
        self._held = self._held[len(text) :]
        return self._shown(text)

    def _shown(self, text: str) -> str:
        if not self._is_begun:
            text = text.lstrip("\n")
            self._is_begun = bool(text)
        return text
