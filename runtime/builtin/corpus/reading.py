"""Reading: true, false or unknown; answers found in statements and in documents."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .documents import EXPLAIN, Document, chat_series, series, some_system
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


_JUDGE_ASKS = ("Is this true, false or unknown?", "True, False or Unknown?")


def true_false(rng: Random) -> Document:
    """Statements about two to four people: they agree with the facts, disagree, or are about something else."""
    words, template, _question = rng.choice(_RELATIONS)
    names = people(rng, rng.choice([2, 2, 3, 3, 4]) + 1)
    stranger = names.pop()
    values = rng.sample(words, len(names))
    thing = rng.choice(THINGS)
    told = [_say(template, name, value, thing) for name, value in zip(names, values, strict=True)]
    asks: list[tuple[str, str]] = []
    reasons: list[str] = []
    for _ in range(rng.choice([1, 1, 2, 3, 4, 5])):
        who = rng.randrange(len(names))
        verdict = rng.choice(["True", "False", "Unknown"])
        if verdict == "True":
            statement = told[who]
        elif verdict == "False":
            near = [value for value in values if value != values[who]]
            wrong = rng.choice(near) if rng.random() < 0.5 else rng.choice([w for w in words if w != values[who]])
            statement = _say(template, names[who], wrong, thing)
        elif rng.random() < 0.5:
            statement = _say(template, stranger, rng.choice(values), thing)
        else:
            other_words, other, _ = rng.choice([relation for relation in _RELATIONS if relation[1] != template])
            statement = _say(other, names[who], rng.choice(other_words), rng.choice(THINGS))
        asks.append((statement, verdict))
        reasons.append("Nothing is said about it." if verdict == "Unknown" else told[who])
    text = " ".join(told)
    key = f"tfu {text} {asks[-1][0]}"
    style = rng.randrange(5)
    if style == 0:
        return series(key, f"Facts: {text}\n", asks, "Statement: {}\nAnswer:")
    if style == 1:
        return series(key, f"{text}\n", asks, "True, False or Unknown? {}\nAnswer:")
    judge = rng.choice(_JUDGE_ASKS)
    if style == 2:
        return chat_series(key, f"{text}\n", [(f"{judge} {ask}", answer) for ask, answer in asks], some_system(rng))
    if style == 3:
        told_asks = [(f"Statement: {ask}", answer) for ask, answer in asks]
        return chat_series(key, f"Facts: {text}\n", told_asks, "Answer True, False or Unknown.")
    explained = [
        (f"{judge} {ask}", f"{reason} So it is {answer}.") for (ask, answer), reason in zip(asks, reasons, strict=True)
    ]
    return chat_series(key, f"{text}\n", explained, EXPLAIN)


@dataclass(frozen=True, slots=True)
class Asked:
    """A question about a text, the short answer, and the sentence of the text that holds it."""

    question: str
    answer: str
    sentence: str


def _statements(rng: Random, names: list[str]) -> list[Asked]:
    """Sentences about these people; sometimes two relations are mixed."""
    first, second = rng.sample(_RELATIONS, 2)
    thing = rng.choice(THINGS)
    told: list[Asked] = []
    for words, template, question in [first] if rng.random() < 0.7 else [first, second]:
        for name, value in zip(names, rng.sample(words, len(names)), strict=True):
            told.append(Asked(question.format(name=name, thing=thing), value, _say(template, name, value, thing)))
    return told


def _family(rng: Random, names: list[str]) -> list[Asked]:
    """Who is whose: the answer is a name."""
    relations = ["father", "sister", "brother", "friend", "teacher", "boss", "mother", "neighbour"]
    target = names[-1]
    return [
        Asked(f"Who is the {relation} of {target}?", name, f"{name} is the {relation} of {target}.")
        for name, relation in zip(names[:-1], rng.sample(relations, len(names) - 1), strict=True)
    ]


def _asked(rng: Random, names: list[str]) -> Document:
    told = _family(rng, names) if rng.random() < 0.25 else _statements(rng, names)
    rng.shuffle(told)
    chosen = rng.sample(told, min(len(told), rng.choice([1, 1, 2, 3, 4])))
    text = " ".join(asked.sentence for asked in told)
    asks = [(asked.question, asked.answer) for asked in chosen]
    key = f"reading {text} {asks[-1][0]}"
    style = rng.randrange(5)
    if style == 0:
        return series(key, f"{text}\n", asks, "Q: {}\nA:")
    if style == 1:
        return series(key, f"{text}\n", asks, "Question: {}\nAnswer:")
    if style == 2:
        return chat_series(key, "", asks, text)
    if style == 3:
        return chat_series(key, f"{text}\n", asks, some_system(rng))
    sentences = [(asked.question, asked.sentence) for asked in chosen]
    return chat_series(key, f"{text}\n", sentences, "Answer in a full sentence.")


def answers(rng: Random) -> Document:
    """Known first names."""
    return _asked(rng, rng.sample(NAMES, rng.choice([2, 2, 3, 3, 4, 5])))


def nonce_answers(rng: Random) -> Document:
    """Invented names."""
    return _asked(rng, nonces(rng, rng.choice([2, 2, 3, 4])))


def tables(rng: Random) -> Document:
    """Keys with values, then keys to be looked up: the plainest form of reading, and the first that is learnt."""
    count = rng.randint(2, 8)
    keys = people(rng, count) if rng.random() < 0.6 else rng.sample(THINGS, count)
    kind = rng.randrange(4)
    values = rng.sample([COLOURS, FRUIT + PETS, PLACES, NAMES][kind], count)
    if rng.random() < 0.3:
        values = [str(rng.randint(10, 99)) for _ in keys]
    rows = list(zip(keys, values, strict=True))
    text = rng.choice(["\n", ", "]).join(f"{key}: {value}" for key, value in rows)
    asks = [rng.choice(rows) for _ in range(rng.randint(1, 2 * count))]
    key = f"table {text}"
    style = rng.randrange(4)
    if style <= 1:
        return series(key, f"{text}\n\n", asks, "{}:")
    if style == 2:
        return series(key, f"{text}\n", asks, "What is next to {}?")
    return chat_series(key, f"{text}\n", [(f"{name}?", value) for name, value in asks[:4]], some_system(rng))


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
    chosen = rng.sample(asks, min(len(asks), rng.choice([1, 1, 2, 3, 4])))
    key = f"document {text}"
    style = rng.randrange(3)
    if style == 0:
        return series(key, f"Document:\n{text}\n", chosen, "Question: {}\nAnswer:")
    if style == 1:
        return chat_series(key, "", chosen, f"Answer from this document.\n{text}")
    return chat_series(key, f"{text}\n\n", chosen, some_system(rng))


def long_documents(rng: Random) -> Document:
    """Many paragraphs: for the last, long part of the training."""
    return documents(rng, rng.randint(8, 18))
