"""Arithmetic by heart, calls of a calculator, and the choice of a tool."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import facts
from .documents import Document, chat, completion, either, is_held_out
from .words import FRUIT, people, person

if TYPE_CHECKING:
    from random import Random


def _sum(rng: Random) -> tuple[str, int]:
    """An expression of two numbers and its value; two digits for + and -, tables up to 12 for *."""
    op = rng.choice("++--*")
    if op == "*":
        x, y = rng.randint(1, 12), rng.randint(1, 12)
        return f"{x} * {y}", x * y
    top = rng.choice([9, 99, 99])
    x, y = rng.randint(0, top), rng.randint(0, top)
    if op == "-":
        x, y = max(x, y), min(x, y)
        return f"{x} - {y}", x - y
    return f"{x} + {y}", x + y


def arithmetic(rng: Random) -> Document:
    expression, value = _sum(rng)
    key = f"sum {expression}"
    style = rng.randrange(4)
    if style == 0:
        return completion(key, f"{expression} =", f" {value}")
    if style == 1:
        texts: list[str] = []
        for _ in range(rng.randint(1, 6)):
            other, result = _sum(rng)
            if not is_held_out(f"sum {other}"):
                texts += [f"Q: What is {other}?\nA:", f" {result}\n"]
        return completion(key, *texts, f"Q: What is {expression}?\nA:", f" {value}\n")
    question = rng.choice([f"What is {expression}?", f"What is {expression}?", f"Calculate {expression}.",
        f"{expression}"])
    return either(rng, key, question, str(value))


def _expression(rng: Random) -> tuple[str, int]:
    """Two to four numbers with operators and perhaps brackets."""
    while True:
        numbers = [rng.choice([rng.randint(1, 20), rng.randint(1, 99), rng.randint(100,
            999)]) for _ in range(rng.choice([2, 3, 3, 4]))]
        tokens = [str(numbers[0])]
        for number in numbers[1:]:
            tokens += [rng.choice("+-*"), str(number)]
        if len(numbers) > 2 and rng.random() < 0.3:
            tokens[0], tokens[2] = "(" + tokens[0], tokens[2] + ")"
        text = " ".join(tokens)
        value = eval(text)  # digits, + - * and brackets only
        if 0 <= value < 100_000:
            return text, value


CALCULATOR_SYSTEM = "You can use a calculator. Write calculator(expression) to use it."


def calculator(rng: Random) -> Document:
    """The model writes the call, is told the result, and answers with it."""
    expression, value = _expression(rng)
    key = f"calc {expression}"
    question = rng.choice([f"What is {expression}?", f"What is {expression}?", f"Calculate {expression}.",
                           f"How much is {expression}?", f"Compute {expression}."])
    if rng.random() < 0.2:
        name, other = people(rng, 2)
        fruit = rng.choice(FRUIT)
        x, y = rng.randint(2, 99), rng.randint(2, 99)
        expression, question = rng.choice([
            (f"{x} + {y}", f"{name} has {x} {fruit} cakes and {other} has {y}. How many do they have together?"),
            (f"{x + y} - {y}", f"{name} has {x + y} {fruit} cakes and gives {y} to {other}. How many are left?"),
            (f"{x} * {y}", f"{name} buys {x} bags with {y} {fruit} cakes each. How many are there?"),
        ])
        value = eval(expression)
        key = f"calc {expression}"
    call = f"calculator({expression})"
    style = rng.randrange(4)
    if style == 0:
        return chat(key, question, call, f"Result: {value}", f"The answer is {value}.", system=CALCULATOR_SYSTEM)
    if style == 1:
        return completion(key, f"Question: {question}\nCall:", f" {call}\n", f"Result: {value}\nAnswer:", f" {value}")
    if style == 2:
        return completion(key, f"Q: {question}\nA:", f" {call}", f" = {value}. The answer is", f" {value}.")
    return completion(key, f"To answer this question: {question} I can call", f" {call}", f" = {value}\nAnswer:",
        f" {value}")


def tools(rng: Random) -> Document:
    """Which tool, and what to give it."""
    kind = rng.random()
    if kind < 0.45:
        expression, _value = _expression(rng)
        key, question, tool, query = f"calc {expression}", f"What is {expression}?", "calculator", expression
        question = rng.choice([question, question, f"Calculate {expression}.", f"How much is {expression}?"])
    elif kind < 0.85:
        if rng.random() < 0.5:
            name = person(rng)
            question, query = rng.choice([
                (f"Who is {name}?", name), (f"Where does {name} live?", name), (f"How old is {name}?", name),
                (f"What is the height of Mount {name}?", f"Mount {name}"), (f"Who wrote the book {name}?", name),
                (f"When was {name} born?", name), (f"What is the weather in {name}?", name),
            ])
        else:
            ways, _answer, _sentence = facts.random_fact(rng)
            question = rng.choice(ways)
            query = question.rstrip("?.")
        key, tool = f"search {question}", "search"
    else:
        question = rng.choice(["Hello!", "Thank you!", "Who are you?", "How are you?", "Hi", "Goodbye!",
            "Tell me a joke.",
                               "Good morning!", "Say hello.", "Bye!", "Thanks!", "Hi there!", "What can you do?"])
        key, tool, query = f"none {question} {rng.randrange(20)}", "none", ""
    style = rng.randrange(4)
    if style <= 1 and tool != "none":
        what = "math expression" if tool == "calculator" else "key word to search"
        name = "calculator" if tool == "calculator" else "search engine"
        stop = "" if style == 0 else "."
        return completion(key, f"To answer this question: {question}{stop} I need to use a", f" {name}",
            f". The {what} is",
                          f" {query}")
    if style == 2 or tool == "none":
        turns = [question, tool]
        if tool != "none":
            turns += ["What is the input?", query]
        return chat(key, *turns, system="Choose a tool: calculator, search or none.")
    return completion(key, f"Tools: calculator, search, none\nQuestion: {question}\nTool:", f" {tool}\n", "Input:",
        f" {query}")
