"""Traces of thought, action and observation: search one or two things, then finish."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .documents import Document, completion
from .words import COUNTRIES, JOBS, a, big, nonces

if TYPE_CHECKING:
    from random import Random

_HEADING = "Solve a question answering task with interleaving Thought, Action, Observation steps.\n"


def react(rng: Random) -> Document:
    """Known or invented places and people; one or two hops."""
    first, second = nonces(rng, 2)
    number = big(rng)
    kind = rng.randrange(4)
    if kind == 0:
        if rng.random() < 0.5:
            country = rng.choice(COUNTRIES)
            first, second = country.name.removeprefix("the "), country.capital
        question = f"How many people live in the capital of {first}?"
        steps = [(f"I need to find the capital of {first}.", first, f"{first} is a country. Its capital is {second}."),
                 (f"The capital is {second}. I need to find how many people live there.", second,
                  f"{second} is a city. It has {number} inhabitants.")]
        answer = str(number)
    elif kind == 1:
        job = rng.choice(JOBS)
        question = f"What is the job of the author of {first}?"
        steps = [(f"I need to find the author of {first}.", first, f"{first} is a book by {second}."),
                 (f"The author is {second}. I need to find the job.", second, f"{second} is {a(job)}.")]
        answer = job
    elif kind == 2:
        question = f"How many people live in {first}?"
        steps = [(f"I need to find how many people live in {first}.", first,
                  f"{first} is a city on the river {second}. It has {number} inhabitants.")]
        answer = str(number)
    else:
        country = rng.choice(COUNTRIES)
        name = country.name.removeprefix("the ") if rng.random() < 0.5 else first
        question = f"What is the capital of {name}?"
        steps = [(f"I need to find the capital of {name}.", name,
                  f"{name} is a country. Its capital is {country.capital if name != first else second}.")]
        answer = country.capital if name != first else second
    key = f"react {question} {answer}"
    numbered = rng.random() < 0.5
    pending = (_HEADING if rng.random() < 0.4 else "") + f"Question: {question}\n"
    texts: list[str] = []
    for i, (thought, query, observation) in enumerate(steps, 1):
        n = f" {i}" if numbered else ""
        texts += [f"{pending}Thought{n}:", f" {thought}\n", f"Action{n}:", f" Search[{query}]\n"]
        pending = f"Observation{n}: {observation}\n"
    n = f" {len(steps) + 1}" if numbered else ""
    texts += [f"{pending}Thought{n}:", f" The answer is {answer}.\n", f"Action{n}:", f" Finish[{answer}]\n"]
    return completion(key, *texts)
