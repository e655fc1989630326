"""The training text of dslc-tiny: one function per family, each drawing one document from a random generator.

`FAMILIES` holds them with their share of the tokens; `draw` gives a document on the wanted side of the hold-out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import facts, labels, react, reading, records, sums, talk, tickets, writing
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
        ("ticket sorting", tickets.sorting, 2.0, 1.0),
        ("tickets asked otherwise", tickets.other_ways, 0.6, 0.3),
        ("facts, few-shot", facts.few_shot, 1.2, 0.6),
        ("facts in chat", facts.in_chat, 0.9, 0.4),
        ("facts as statements", facts.statement, 0.2, 0.1),
        ("small talk", talk.small_talk, 0.5, 0.2),
        ("memory", talk.memory, 0.7, 0.3),
        ("arithmetic", sums.arithmetic, 3.0, 2.0),
        ("calculator", sums.calculator, 1.0, 0.4),
        ("choice of a tool", sums.tools, 0.6, 0.3),
        ("JSON, city in a text", records.city, 1.0, 0.4),
        ("JSON, known city", records.known_city, 0.4, 0.2),
        ("JSON, character", records.character, 0.9, 0.4),
        ("JSON, known character", records.known_character, 0.15, 0.1),
        ("true, false, unknown", reading.true_false, 1.2, 9.0),
        ("reading", reading.answers, 1.6, 1.5),
        ("reading, invented names", reading.nonce_answers, 1.4, 1.2),
        ("document questions", reading.documents, 1.2, 0.5),
        ("sentiment", labels.sentiment, 0.3, 0.15),
        ("finding in a message", labels.finding, 0.6, 0.3),
        ("judging", reading.judging, 0.8, 1.0),
        ("multiple choice", reading.choices, 0.8, 1.0),
        ("tips", writing.tips, 0.5, 0.2),
        ("skeletons", writing.skeleton, 0.3, 0.15),
        ("stories", writing.story, 0.5, 0.2),
        ("copying", writing.copying, 1.3, 0.6),
        ("ReAct", react.react, 0.7, 0.3),
    )
)

LONG = Family("long documents", reading.long_documents, 8.0, 8.0)


def draw(family: Family, rng: Random, *, held_out: bool) -> Document:
    """A document of this family that is held out, or one that is not."""
    while True:
        document = family.make(rng)
        if document.is_held_out == held_out:
            return document
