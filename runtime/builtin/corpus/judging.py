"""Judging two answers, and multiple choice."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import facts
from .documents import EXPLAIN, Document, chat_series, is_held_out, series, some_system
from .words import COUNTRIES

if TYPE_CHECKING:
    from random import Random

_FIELDS = ("capital", "language", "currency", "continent")


def _two_answers(rng: Random) -> tuple[str, str, str]:
    """A question with answers A and B, the letter of the right one, and why."""
    if rng.random() < 0.6:
        index = rng.choice([0, 0, 1, 3])
        c, other = rng.sample(COUNTRIES, 2)
        ways, _answer, sentence = facts.country_facts(c)[index]
        question, right, wrong = ways[0], getattr(c, _FIELDS[index]), getattr(other, _FIELDS[index])
        if right == wrong:
            return _two_answers(rng)
    else:
        x, y = rng.randint(1, 9), rng.randint(1, 9)
        question, right, sentence = f"What is {x} + {y}?", str(x + y), f"{x} + {y} = {x + y}."
        wrong = str(x + y + rng.choice([-1, 1, 2, 3]))
    letter = rng.choice("AB")
    first, second = (right, wrong) if letter == "A" else (wrong, right)
    text = f"Question: {question}\nAnswer A: {first}\nAnswer B: {second}\n"
    return text, letter, f"{sentence.removesuffix('.')}, so {letter}."


def judging(rng: Random) -> Document:
    """Which of two answers is right? One to four times."""
    judged = [_two_answers(rng) for _ in range(rng.choice([1, 1, 2, 3, 4]))]
    asks = [(text, letter) for text, letter, _why in judged]
    key = f"judge {asks[0][0]}"
    style = rng.randrange(4)
    if style == 0:
        return series(key, "", asks, "{}The right answer is")
    if style == 1:
        return series(key, "", asks, "{}Which answer is right?\nJudgement:")
    ask = "{}Which answer is right, A or B?"
    if style == 2:
        return chat_series(key, "", [(ask.format(text), letter) for text, letter in asks], some_system(rng))
    return chat_series(key, "", [(ask.format(text), why) for text, _letter, why in judged], EXPLAIN)


def _four_answers(rng: Random) -> tuple[str, str, str]:
    index = rng.choice([0, 0, 0, 1, 3])
    c = rng.choice(COUNTRIES)
    field = _FIELDS[index]
    right = str(getattr(c, field))
    options = rng.sample(sorted({str(getattr(other, field)) for other in COUNTRIES} - {right}), 3)
    place = rng.randrange(4)
    options.insert(place, right)
    letter = "ABCD"[place]
    ways, _answer, sentence = facts.country_facts(c)[index]
    # The fact itself is trained on in these wordings; what is held out is the choice.
    question = rng.choice([way for way in ways if not is_held_out(facts.question_key(way))])
    lines = "\n".join(f"{name}. {option}" for name, option in zip("ABCD", options, strict=True))
    return f"{question}\n{lines}", letter, f"{sentence.removesuffix('.')}, so {letter}."


def choices(rng: Random) -> Document:
    """The letter of the right answer, one to three times."""
    asked = [_four_answers(rng) for _ in range(rng.choice([1, 1, 2, 3]))]
    key = f"choice {asked[0][0]}"
    style = rng.randrange(4)
    if style <= 1:
        return series(key, "", [(text, letter) for text, letter, _why in asked], "Question: {}\nAnswer:")
    if style == 2:
        system = rng.choice([None, "Answer with A, B, C or D."])
        return chat_series(key, "", [(text, letter) for text, letter, _why in asked], system)
    return chat_series(key, "", [(text, why) for text, _letter, why in asked], EXPLAIN)
