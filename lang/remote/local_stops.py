"""Stop strings that a provider does not take, found here in the text as it comes."""

from __future__ import annotations

from collections.abc import Sequence


class LocalStops:
    """Cuts a text at the first of some stop strings. What may be the beginning of one is held back."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._rest = ""
        self.text = ""  # what is certain of it
        self.matched: str | None = None

    def feed(self, piece: str) -> str:
        """More of the text; what of it is certain now. Nothing after a match."""
        if self.matched is not None:
            return ""
        self._rest += piece
        places = [(self._rest.index(stop), stop) for stop in self._stops if stop in self._rest]
        if places:
            at, self.matched = min(places)
            certain = self._rest[:at]
        else:
            held = max((k for s in self._stops for k in range(1, len(s)) if self._rest.endswith(s[:k])), default=0)
            certain = self._rest[: len(self._rest) - held]
        self._rest = self._rest[len(certain) :]
        self.text += certain
        return certain

    def finish(self) -> str:
        """The text has ended: what was held back."""
        rest, self._rest = ("", "") if self.matched is not None else (self._rest, "")
        self.text += rest
        return rest
