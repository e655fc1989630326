"""JSON about cities and characters: one layout, keys in schema order, whole and field by field."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from .documents import Document, chat, completion, some_system
from .words import COUNTRIES, Country, big, listed, nonce, nonces, person

if TYPE_CHECKING:
    from random import Random

Record = dict[str, str | int]

_HOUSES = ("Gryffindor", "Slytherin", "Ravenclaw", "Hufflepuff")
_WOODS = ("oak", "ash", "holly", "willow", "vine", "elm", "cherry", "walnut", "yew", "cedar")
_CORES = ("dragon heartstring", "phoenix feather", "unicorn hair")
_STATUS = ("alive", "dead")
_BLOOD = ("pure", "half", "muggle")
_PETS = ("owl", "cat", "toad", "rat", "raven")


def _city(rng: Random) -> tuple[Record, list[str], str]:
    """A city, sentences that say all of it, and the key of the combination."""
    name, river = nonces(rng, 2)
    if rng.random() < 0.35:
        known: Country = rng.choice(COUNTRIES)
        name, country = known.capital, known.name
    else:
        country = rng.choice(COUNTRIES).name if rng.random() < 0.6 else nonce(rng)
    people, founded = big(rng), rng.randint(700, 1999)
    language = rng.choice(COUNTRIES).language
    record: Record = {"name": name, "country": country.removeprefix("the "), "population": people, "founded": founded,
                      "river": river, "language": language}
    sentences = [
        rng.choice([f"{name} is a city in {country}.", f"{name} is a large city in {country}.",
                    f"The city of {name} lies in {country}."]),
        rng.choice([f"It has {people} inhabitants.", f"It has a population of {people}.",
            f"{people} people live there."]),
        rng.choice([f"It was founded in {founded}.", f"The city was founded in the year {founded}."]),
        rng.choice([f"It lies on the river {river}.", f"The river {river} runs through it."]),
        rng.choice([f"People there speak {language}.", f"The language is {language}."]),
    ]
    return record, sentences, f"city {name} {country} {people}"


def _choose(rng: Random, record: Record, sentences: list[str], minimum: int) -> tuple[Record, list[str]]:
    """Keep the first `minimum` fields and some of the others, with their sentences; shuffle what may be shuffled."""
    keys = list(record)
    extra = rng.sample(keys[minimum:], rng.choice([0, 0, 1, 2, len(keys) - minimum]))
    kept = {key: record[key] for key in keys if key in keys[:minimum] or key in extra}
    told = sentences[1:]
    rng.shuffle(told)
    return kept, [sentences[0], *told]


def _as_document(rng: Random, key: str, request: str, record: Record, opening: str = "") -> Document:
    """`request` and the record: in one piece, or the values one after the other."""
    whole = json.dumps(record)
    if rng.random() < 0.35:
        return chat(key, opening + request, whole, system=some_system(rng))
    if rng.random() < 0.5:
        return completion(key, f"{opening}{request}\n", whole)
    return _fields(key, f"{opening}{request}\n", record, rng.random() < 0.6)


def _fields(key: str, request: str, record: Record, quotes_given: bool) -> Document:
    texts: list[str] = []
    pending = request + "{"
    for name, value in record.items():
        pending += json.dumps(name) + ": "
        if isinstance(value, str) and quotes_given:
            texts += [pending + '"', value]
            pending = '", '
        else:
            texts += [pending, json.dumps(value)]
            pending = ", "
    texts.append(pending.removesuffix(", ") + "}")
    return completion(key, *texts)


_CITY_REQUESTS = ("Give the {fields} of the city as JSON.", "Extract the {fields} as JSON.",
                  "Here is the {fields} of the city in JSON format.", "Return the {fields} as JSON.")


def city(rng: Random) -> Document:
    """A city described in a text; the request names the keys."""
    record, sentences, key = _city(rng)
    record, sentences = _choose(rng, record, sentences, 3)
    text = " ".join(sentences)
    request = rng.choice(_CITY_REQUESTS).format(fields=listed(list(record)))
    style = rng.randrange(3)
    if style == 0:
        opening = ("Please extract the information of a city from the following wikipedia page.\nPage begin.\n"
                   f"{text}\nPage end.\n")
    elif style == 1:
        opening = f"{text}\n"
    else:
        opening = f"Text: {text}\n"
    if rng.random() < 0.15 and len(record) == 3:
        return chat(key, text, json.dumps(record), system="Give the city as JSON.")
    return _as_document(rng, key, request, record, opening)


def known_city(rng: Random) -> Document:
    """A capital known by heart."""
    c = rng.choice(COUNTRIES)
    record: Record = {"name": c.capital, "country": c.name.removeprefix("the "), "population": c.population}
    request = rng.choice([
        f"Here is the information of the capital of {c.name} in the JSON format.",
        f"Give me the information of the capital of {c.name} in the JSON format.",
        f"{c.capital} is a city. Give its name, country and population as JSON.",
        f"Describe {c.capital} as JSON.", f"Tell me about {c.capital} as JSON.",
        f"Give me JSON about {c.capital}.", f"Describe the capital of {c.name} as JSON.",
        f"Write JSON about the city {c.capital}.",
    ])
    return _as_document(rng, f"known {request}", request, record)


def character(rng: Random) -> Document:
    """A character of a book, described in a short text."""
    name = f"{person(rng)} {nonce(rng)}" if rng.random() < 0.8 else person(rng)
    house, wood, core = rng.choice(_HOUSES), rng.choice(_WOODS), rng.choice(_CORES)
    status, blood, pet, age = rng.choice(_STATUS), rng.choice(_BLOOD), rng.choice(_PETS), rng.randint(11, 99)
    record: Record = {"name": name, "house": house, "wand": f"{wood} with {core}", "age": age, "pet": pet,
                      "blood": blood, "alive": status}
    sentences = [
        rng.choice([f"{name} is a wizard in the house {house}.", f"{name} belongs to {house}.",
                    f"{name} is a student of {house}."]),
        rng.choice([f"The wand is made of {wood} with {core}.", f"A wand of {wood} with {core} lies in the bag."]),
        rng.choice([f"The age is {age}.", f"{name} is {age} years old."]),
        rng.choice([f"The pet is {'an' if pet == 'owl' else 'a'} {pet}.",
            f"There is also a pet, {'an' if pet == 'owl' else 'a'} {pet}."]),
        rng.choice([f"The family is of {blood} blood.", f"The blood is {blood}."]),
        rng.choice([f"Today {name.split()[0]} is {status}.", f"{name.split()[0]} is {status}."]),
    ]
    key = f"character {name} {house} {wood} {core}"
    record, sentences = _choose(rng, record, sentences, 3)
    request = rng.choice([
        f"Give the {listed(list(record))} of the character as JSON.",
        f"Please fill in the following information about this character: {', '.join(record)}.",
        f"Extract the {listed(list(record))} as JSON.",
    ])
    if rng.random() < 0.15 and len(record) == 3:
        return chat(key, " ".join(sentences), json.dumps(record), system="Give the character as JSON.")
    return _as_document(rng, key, request, record, " ".join(sentences) + "\n")


_KNOWN = (
    ("Harry Potter", "Gryffindor", "holly", "phoenix feather"),
    ("Hermione Granger", "Gryffindor", "vine", "dragon heartstring"),
    ("Ron Weasley", "Gryffindor", "willow", "unicorn hair"),
    ("Draco Malfoy", "Slytherin", "hawthorn", "unicorn hair"),
    ("Luna Lovegood", "Ravenclaw", "oak", "unicorn hair"),
    ("Cedric Diggory", "Hufflepuff", "ash", "unicorn hair"),
)


def known_character(rng: Random) -> Document:
    """The few characters known by heart."""
    name, house, wood, core = rng.choice(_KNOWN)
    record: Record = {"name": name, "house": house, "wand": f"{wood} with {core}"}
    request = rng.choice([
        f"{name} is a character in Harry Potter. Please fill in the following information about this character.",
        f"{name} is a character in Harry Potter. Give the name, house and wand as JSON.",
        f"Describe {name} as JSON.", f"Write JSON about the character {name}.",
        f"Give me JSON about {name}.",
    ])
    return _as_document(rng, f"known {request}", request, record)
