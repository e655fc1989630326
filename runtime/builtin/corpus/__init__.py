"""The training text of dslc-tiny: one function per family, each drawing one document from a random generator.

`FAMILIES` holds them with their share of the tokens; `draw` gives a document on the wanted side of the hold-out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import facts, judging, labels, react, reading, records, sums, talk, tickets, writing
from .documents import END, IM_END, IM_START, Document, Maker, Part, is_held_out
from .tickets import Ticket, sample_tickets

if TYPE_CHECKING:
    from random import Random

__all__ = ["END", "FAMILIES", "IM_END", "IM_START", "LONG", "Document", "Family", "Part", "Ticket", "draw",
    "is_held_out",
           "sample_tickets"]


@dataclass(frozen=True, slots=True)
class Family:
    """A kind of task. `share` is relative, in tokens; the concentrated block uses `block_share`."""

    name: str
    make: Maker
    share: float
    block_share: float


FAMILIES = tuple(
    Family(*row)
    for row in (
        ("ticket sorting", tickets.sorting, 3.5, 1.5),
        ("tickets asked otherwise", tickets.other_ways, 0.7, 0.3),
        ("facts, few-shot", facts.few_shot, 1.1, 0.5),
        ("facts in chat", facts.in_chat, 0.8, 0.35),
        ("facts as statements", facts.statement, 0.15, 0.08),
        ("small talk", talk.small_talk, 0.35, 0.15),
        ("not known", talk.unknown, 0.25, 0.1),
        ("memory", talk.memory, 0.4, 0.2),
        ("arithmetic", sums.arithmetic, 2.6, 1.5),
        ("calculator", sums.calculator, 0.8, 0.3),
        ("choice of a tool", sums.tools, 0.6, 0.3),
        ("JSON, city in a text", records.city, 0.6, 0.3),
        ("JSON, known city", records.known_city, 0.25, 0.12),
        ("JSON, character", records.character, 1.0, 0.4),
        ("JSON, known character", records.known_character, 0.1, 0.05),
        ("true, false, unknown", reading.true_false, 1.8, 7),
        ("tables", reading.tables, 0.5, 0.3),
        ("reading", reading.answers, 2.2, 2.5),
        ("reading, invented names", reading.nonce_answers, 2.0, 2),
        ("document questions", reading.documents, 1.6, 0.6),
        ("sentiment", labels.sentiment, 0.2, 0.1),
        ("finding in a message", labels.finding, 0.5, 0.2),
        ("judging", judging.judging, 1.0, 1.5),
        ("multiple choice", judging.choices, 1.4, 2.5),
        ("tips", writing.tips, 0.5, 0.2),
        ("skeletons", writing.skeleton, 0.5, 0.25),
        ("stories", writing.story, 0.35, 0.15),
        ("copying", writing.copying, 1.0, 0.4),
        ("ReAct", react.react, 0.8, 0.3),
    )
)

LONG = Family("long documents", reading.long_documents, 8.0, 8.0)


def draw(family: Family, rng: Random, *, held_out: bool) -> Document:
    """A document of this family that is held out, or one that is not."""
    while True:
        document = family.make(rng)
        if document.is_held_out == held_out:
            return document
