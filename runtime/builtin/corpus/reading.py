"""Reading: true, false or unknown; answers found in statements; documents; judging; multiple choice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import facts
from .documents import Document, chat, completion, is_held_out, some_system
from .words import COLOURS, COUNTRIES, FRUIT, JOBS, NAMES, PETS, PLACES, THINGS, a, big, nonce, nonces, people

if TYPE_CHECKING:
    from dataclasses import dataclass
from random import Random

# Relations between a person and a word: kind, words, sentence, question, short answer is the word itself.
_RELATIONS: tuple[tuple[tuple[str, ...], str, str], ...] = (
    (tuple(COLOURS), "{name}'s {thing} is {value}.", "What colour is {name}'s {thing}?"),
    (tuple(PETS), "{name} has {a_value}.", "Which pet does {name} have?"),
    (tuple(JOBS), "{name} is {a_value}.", "What is {name}'s job?"),
    (tuple(FRUIT), "{name} likes {value} cake.", "Which cake does {name} like?"),
    (tuple(PLACES), "{name} is at the {value}.", "Where is {name}?"),
    (tuple(c.capital for c in COUNTRIES[:24]), "{name} lives in {value}.", "In which city does {name} live?"),
    (tuple(THINGS), "{name} bought {a_value}.", "What did {name} buy?"),
)


def _say(template: str, name: str, value: str, thing: str) -> str:
    return template.format(name=name, value=value, a_value=a(value), thing=thing)


EXPLAIN = "Explain your answer."
_JUDGE_ASKS = ("Is this true, false or unknown?", "True, False or Unknown?")


def true_false(rng: Random) -> Document:
    """One or two relations, two to four people; the statement agrees, disagrees, or is about somebody else."""
    words, template, _question = rng.choice(_RELATIONS)
    names = people(rng, rng.randint(2, 4) + 1)
    stranger = names.pop()
    values = rng.sample(words, len(names))
    thing = rng.choice(THINGS)
    told = [_say(template, name, value, thing) for name, value in zip(names, values, strict=True)]
    who = rng.randrange(len(names))
    verdict = rng.choice(["True", "False", "Unknown"])
    if verdict == "Unknown":
        if rng.random() < 0.5:
            statement = _say(template, stranger, rng.choice(values), thing)
        else:
            other_words, other, _ = rng.choice([relation for relation in _RELATIONS if relation[1] != template])
            statement = _say(other, names[who], rng.choice(other_words), rng.choice(THINGS))
    elif verdict == "True":
        statement = told[who]
    else:
        near = [value for value in values if value != values[who]]
        wrong = rng.choice(near) if rng.random() < 0.5 else rng.choice([w for w in words if w != values[who]])
        statement = _say(template, names[who], wrong, thing)
    text = " ".join(told)
    key = f"tfu {text} {statement}"
    style = rng.randrange(5)
    if style == 4:
        same = verdict != "Unknown"
        why = f"{told[who]} So it is {verdict}." if same else f"Nothing is said about it. So it is {verdict}."
        return chat(key, f"{text}\n{rng.choice(_JUDGE_ASKS)} {statement}", why, system=EXPLAIN)
    if style == 0:
        return completion(key, f"Facts: {text}\nStatement: {statement}\nAnswer:", f" {verdict}")
    if style == 1:
        return chat(key, f"{text}\n{rng.choice(_JUDGE_ASKS)} {statement}", verdict, system=some_system(rng))
    if style == 2:
        return completion(key, f"{text}\nTrue, False or Unknown? {statement}\nAnswer:", f" {verdict}")
    return chat(key, f"Facts: {text}\nStatement: {statement}", verdict, system="Answer True, False or Unknown.")


@dataclass(frozen=True, slots=True)
class Asked:
    """A text, a question about it, the short answer, and the sentence of the text that holds it."""

    told: list[str]
    question: str
    answer: str
    sentence: str


def _statements(rng: Random, names: list[str]) -> Asked:
    """Sentences about these people; sometimes two relations are mixed."""
    first, second = rng.sample(_RELATIONS, 2)
    thing = rng.choice(THINGS)
    told: list[str] = []
    asks: list[tuple[str, str, str]] = []
    for relation in [first] if rng.random() < 0.7 else [first, second]:
        words, template, question = relation
        for name, value in zip(names, rng.sample(words, len(names)), strict=True):
            told.append(_say(template, name, value, thing))
            asks.append((question.format(name=name, thing=thing), value, told[-1]))
    rng.shuffle(told)
    return Asked(told, *rng.choice(asks))


def _asked(rng: Random, key: str, asked: Asked) -> Document:
    text, question, answer = " ".join(asked.told), asked.question, asked.answer
    key = f"{key} {text} {question}"
    style = rng.randrange(5)
    if style == 4:
        return chat(key, f"{text}\n{question}", asked.sentence, system="Answer in a full sentence.")
    if style == 0:
        return completion(key, f"{text}\nQ: {question}\nA:", f" {answer}\n")
    if style == 1:
        return completion(key, f"{text}\nQuestion: {question}\nAnswer:", f" {answer}")
    if style == 2:
        return chat(key, question, answer, system=text)
    return chat(key, f"{text}\n{question}", answer, system=some_system(rng))


def answers(rng: Random) -> Document:
    """Known first names."""
    names = rng.sample(NAMES, rng.randint(2, 5))
    if rng.random() < 0.25:
        return _asked(rng, "family", _family(rng, names))
    return _asked(rng, "reading", _statements(rng, names))


def nonce_answers(rng: Random) -> Document:
    """Invented names."""
    names = nonces(rng, rng.randint(2, 4))
    if rng.random() < 0.25:
        return _asked(rng, "family", _family(rng, names))
    return _asked(rng, "nonce", _statements(rng, names))


def _family(rng: Random, names: list[str]) -> Asked:
    """Who is whose: the answer is a name."""
    relations = ["father", "sister", "brother", "friend", "teacher", "boss", "mother", "neighbour"]
    told: list[str] = []
    asks: list[tuple[str, str, str]] = []
    target = names[-1]
    for name, relation in zip(names[:-1], rng.sample(relations, len(names) - 1), strict=True):
        told.append(f"{name} is the {relation} of {target}.")
        asks.append((f"Who is the {relation} of {target}?", name, told[-1]))
    return Asked(told, *rng.choice(asks))


def _paragraph(rng: Random) -> tuple[str, list[tuple[str, str]]]:
    """A short document about one invented thing, with questions about it."""
    name = nonce(rng)
    kind = rng.randrange(4)
    if kind == 0:
        country, river, count, year = rng.choice(COUNTRIES).name, nonce(rng), big(rng), rng.randint(700, 1999)
        return (f"{name} is a city in {country}. It has {count} inhabitants and was founded in {year}. "
                f"It lies on the river {river}."), [
            (f"In which country is {name}?", country), (f"How many people live in {name}?", str(count)),
            (f"When was {name} founded?", str(year)), (f"On which river does {name} lie?", river)]
    if kind == 1:
        boss, city, count, product = rng.choice(NAMES), rng.choice(COUNTRIES).capital, rng.randint(2,
            900), rng.choice(THINGS)
        return (f"{name} is a company in {city} that makes {product}s. It has {count} workers. "
                f"The head of {name} is {boss}."), [
            (f"Where is the company {name}?", city), (f"What does {name} make?", f"{product}s"),
            (f"How many workers does {name} have?", str(count)), (f"Who is the head of {name}?", boss)]
    if kind == 2:
        author, year, topic = nonce(rng), rng.randint(1800, 2020), rng.choice(JOBS)
        return (f"{name} is a book by {author}. It came out in {year} and tells the story of {a(topic)}."), [
            (f"Who wrote {name}?", author), (f"When did {name} come out?", str(year)),
            (f"Whose story does {name} tell?", a(topic))]
    version, price, colour = f"{rng.randint(1, 9)}.{rng.randint(0, 9)}", rng.randint(5, 999), rng.choice(COLOURS)
    return (f"{name} is a program for drawing. The newest version is {version}. It costs {price} euros and its icon "
            f"is {colour}."), [
        (f"What is the newest version of {name}?", version), (f"How much does {name} cost?", f"{price} euros"),
        (f"Which colour is the icon of {name}?", colour)]


def documents(rng: Random, count: int | None = None) -> Document:
    """One to four paragraphs, then one or two questions about any of them."""
    pages = [_paragraph(rng) for _ in range(count or rng.choice([1, 1, 2, 3, 4]))]
    text = "\n".join(page for page, _asks in pages)
    asks = [ask for _page, page_asks in pages for ask in page_asks]
    chosen = rng.sample(asks, rng.choice([1, 1, 2]))
    key = f"document {text}"
    style = rng.randrange(3)
    if style == 0:
        texts: list[str] = []
        for i, (question, answer) in enumerate(chosen):
            lead = f"Document:\n{text}\n" if i == 0 else "\n"
            texts += [f"{lead}Question: {question}\nAnswer:", f" {answer}"]
        return completion(key, *texts)
    turns = [part for ask in chosen for part in ask]
    if style == 1:
        return chat(key, *turns, system=f"Answer from this document.\n{text}")
    return chat(key, f"{text}\n\n{turns[0]}", *turns[1:], system=some_system(rng))


def long_documents(rng: Random) -> Document:
    """Many paragraphs: for the last, long part of the training."""
    return documents(rng, rng.randint(8, 18))


def judging(rng: Random) -> Document:
    """Which of two answers is right?"""
    if rng.random() < 0.6:
        index = rng.choice([0, 0, 1, 3])
        right_c, wrong_c = rng.sample(COUNTRIES, 2)
        fields = [(c.capital, c.language, c.currency, c.continent)[index] for c in (right_c, wrong_c)]
        if fields[0] == fields[1]:
            return judging(rng)
        ways, _answer, sentence = facts.country_facts(right_c)[index]
        question = ways[0]
        right, wrong = fields
    else:
        x, y = rng.randint(1, 9), rng.randint(1, 9)
        question, right = f"What is {x} + {y}?", str(x + y)
        sentence = f"{x} + {y} = {right}."
        wrong = str(x + y + rng.choice([-2, -1, 1, 2, 3]))
        if wrong.startswith("-"):
            return judging(rng)
    letter = rng.choice("AB")
    first, second = (right, wrong) if letter == "A" else (wrong, right)
    key = f"judge {question} {first} {second}"
    text = f"Question: {question}\nAnswer A: {first}\nAnswer B: {second}\n"
    style = rng.randrange(4)
    if style == 3:
        why = f"{sentence.removesuffix('.')}, so {letter}."
        return chat(key, f"{text}Which answer is right, A or B?", why, system=EXPLAIN)
    if style == 0:
        return completion(key, f"{text}The right answer is", f" {letter}")
    if style == 1:
        return chat(key, f"{text}Which answer is right, A or B?", letter, system=some_system(rng))
    return completion(key, f"{text}Which answer is right?\nJudgement:", f" {letter}")


def choices(rng: Random) -> Document:
    """Multiple choice about the facts: the letter of the right answer."""
    index = rng.choice([0, 0, 0, 1, 3])
    c = rng.choice(COUNTRIES)
    field = ("capital", "language", "currency", "continent")[index]
    right = str(getattr(c, field))
    others = sorted({str(getattr(other, field)) for other in COUNTRIES} - {right})
    options = rng.sample(others, 3)
    letter = rng.randrange(4)
    options.insert(letter, right)
    ways, _answer, sentence = facts.country_facts(c)[index]
    question = rng.choice(ways)
    lines = "\n".join(f"{name}. {option}" for name, option in zip("ABCD", options, strict=True))
    key = f"choice {question} {options[0]} {letter}"
    if is_held_out(facts.question_key(question)):  # the fact itself must have been seen in this wording
        key = f"choice {question} {options[0]} {letter} {rng.random()}"
    if rng.random() < 0.25:
        why = f"{sentence.removesuffix('.')}, so {'ABCD'[letter]}."
        return chat(key, f"{question}\n{lines}", why, system=EXPLAIN)
    if rng.random() < 0.5:
        return completion(key, f"Question: {question}\n{lines}\nAnswer:", f" {'ABCD'[letter]}")
    return chat(key, f"{question}\n{lines}", "ABCD"[letter], system=rng.choice([None, "Answer with A, B, C or D."]))
