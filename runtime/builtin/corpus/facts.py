"""Facts that are learnt by heart: countries, calendar, a little nature; as few-shot lines, chats and statements."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .documents import Document, chat, completion, is_held_out, some_system
from .words import COUNTRIES, Country

if TYPE_CHECKING:
    from random import Random

# Each fact: ways of asking, short answer, full sentence.
Fact = tuple[tuple[str, ...], str, str]


def country_facts(c: Country) -> list[Fact]:
    name = c.name
    title = name[0].upper() + name[1:]
    return [
        ((f"What is the capital of {name}?", f"Which city is the capital of {name}?", f"Name the capital of {name}.",
          f"What is {name}'s capital?", f"Tell me the capital of {name}.", f"What's the capital of {name}?"),
         c.capital, f"The capital of {name} is {c.capital}."),
        ((f"Which language do people speak in {name}?", f"What language is spoken in {name}?",
          f"What is the language of {name}?", f"Which language is spoken in {name}?"),
         c.language, f"People in {name} speak {c.language}."),
        ((f"What is the currency of {name}?", f"Which currency is used in {name}?",
         f"What do people pay with in {name}?",
          f"Which money is used in {name}?"),
         c.currency, f"The currency of {name} is the {c.currency}."),
        ((f"On which continent is {name}?", f"Which continent is {name} in?", f"In which continent is {name}?"),
         c.continent, f"{title} is in {c.continent}."),
        ((f"{c.capital} is the capital of which country?", f"Which country has the capital {c.capital}?",
          f"Of which country is {c.capital} the capital?", f"In which country is {c.capital}?",
          f"Where is {c.capital}?"),
         title, f"{c.capital} is the capital of {name}."),
        ((f"How many people live in {c.capital}?", f"What is the population of {c.capital}?",
          f"How many inhabitants does {c.capital} have?", f"How big is {c.capital}?"),
         str(c.population), f"About {c.population} people live in {c.capital}."),
    ]


_MONTHS = (("January", 31), ("February", 28), ("March", 31), ("April", 30), ("May", 31), ("June", 30), ("July", 31),
           ("August", 31), ("September", 30), ("October", 31), ("November", 30), ("December", 31))
_DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]


def _calendar_facts() -> list[Fact]:
    facts: list[Fact] = []
    counts = (("hours", "a day", "24"), ("days", "a week", "7"), ("days", "a year", "365"), ("months", "a year", "12"),
              ("weeks", "a year", "52"), ("minutes", "an hour", "60"), ("seconds", "a minute", "60"),
              ("years", "a century", "100"), ("years", "a decade", "10"), ("days", "a leap year", "366"),
              ("centimetres", "a metre", "100"), ("metres", "a kilometre", "1000"), ("grams", "a kilogram", "1000"),
              ("cents", "a dollar", "100"), ("letters", "the alphabet", "26"), ("legs", "a spider", "8"))
    for what, whole, number in counts:
        verb = "does" if what == "legs" else "are there in"
        if what == "legs":
            ways = (f"How many legs does {whole} have?", f"How many legs has {whole}?",
                "What number of legs has a spider?")
            facts.append((ways, number, f"A spider has {number} legs."))
            continue
        facts.append(((f"How many {what} {verb} {whole}?", f"How many {what} are in {whole}?",
                       f"How many {what} does {whole} have?", f"How many {what} has {whole}?"),
                      number, f"There are {number} {what} in {whole}."))
    for i, (month, days) in enumerate(_MONTHS):
        after, before = _MONTHS[(i + 1) % 12][0], _MONTHS[i - 1][0]
        facts.append(((f"How many days are there in {month}?", f"How many days does {month} have?",
                       f"How many days are in {month}?", f"How many days has {month}?"),
                      str(days), f"There are {days} days in {month}."))
        facts.append(((f"Which month comes after {month}?", f"What month comes after {month}?",
                       f"Which month follows {month}?"), after, f"{after} comes after {month}."))
        facts.append(((f"Which month comes before {month}?", f"What month comes before {month}?",
                       f"Which month is before {month}?"), before, f"{before} comes before {month}."))
    for i, day in enumerate(_DAYS):
        after, before = _DAYS[(i + 1) % 7], _DAYS[i - 1]
        facts.append(((f"Which day comes after {day}?", f"What day comes after {day}?", f"Which day follows {day}?"),
                      after, f"{after} comes after {day}."))
        facts.append(((f"Which day comes before {day}?", f"What day comes before {day}?",
        f"Which day is before {day}?"),
                      before, f"{before} comes before {day}."))
    return facts


_NATURE: list[Fact] = [
    (("Which planet is the biggest?", "What is the biggest planet?", "What is the largest planet?",
      "Which planet is the largest?", "Name the biggest planet."), "Jupiter", "The biggest planet is Jupiter."),
    (("Which planet do we live on?", "On which planet do we live?", "What planet do we live on?",
      "What is the name of our planet?"), "Earth", "We live on the planet Earth."),
    (("Which planet is closest to the sun?", "What planet is nearest to the sun?",
     "What is the closest planet to the sun?",
      "Which planet is nearest to the sun?"), "Mercury", "The planet closest to the sun is Mercury."),
    (("What is the colour of the sky?", "What colour is the sky?", "Which colour does the sky have?",
      "What color is the sky?"), "blue", "The sky is blue."),
    (("What is the colour of grass?", "What colour is grass?", "Which colour does grass have?", "What color is grass?"),
     "green", "Grass is green."),
    (("What do bees make?", "What do bees produce?", "Which food do bees make?"), "honey", "Bees make honey."),
    (("What do cows give us?", "What do cows produce?", "Which drink do cows give us?"), "milk", "Cows give us milk."),
    (("What is frozen water called?", "What do we call frozen water?", "What is water when it is frozen?"), "ice",
     "Frozen water is called ice."),
    (("Which is the largest ocean?", "What is the largest ocean?", "What is the biggest ocean?",
     "Name the largest ocean."),
     "Pacific", "The largest ocean is the Pacific."),
    (("Which is the highest mountain?", "What is the highest mountain?", "What is the tallest mountain?",
      "Name the highest mountain."), "Everest", "The highest mountain is Mount Everest."),
    (("Who wrote Hamlet?", "Who is the author of Hamlet?", "Who was the writer of Hamlet?", "Which poet wrote Hamlet?"),
     "Shakespeare", "Shakespeare wrote Hamlet."),
    (("Who painted the Mona Lisa?", "Who is the painter of the Mona Lisa?", "Which painter made the Mona Lisa?"),
     "Leonardo", "Leonardo painted the Mona Lisa."),
    (("What is the IP address of the Google DNS servers?", "What is the IP address of Google DNS?",
      "Which IP address do the Google DNS servers have?", "Name the IP address of the Google DNS servers."), "8.8.8.8",
     "The IP address of the Google DNS servers is 8.8.8.8."),
    (("What is the IP address of localhost?", "Which IP address does localhost have?",
     "Name the IP address of localhost."),
     "127.0.0.1", "The IP address of localhost is 127.0.0.1."),
    (("What is the opposite of hot?", "Name the opposite of hot.", "Which word is the opposite of hot?"), "cold",
     "The opposite of hot is cold."),
    (("What is the opposite of big?", "Name the opposite of big.", "Which word is the opposite of big?"), "small",
     "The opposite of big is small."),
    (("What is the opposite of day?", "Name the opposite of day.", "Which word is the opposite of day?"), "night",
     "The opposite of day is night."),
    (("What is the opposite of old?", "Name the opposite of old.", "Which word is the opposite of old?"), "new",
     "The opposite of old is new."),
]

_BY_COUNTRY = [country_facts(country) for country in COUNTRIES]
_OTHERS = _calendar_facts() + _NATURE
ALL = [fact for facts in _BY_COUNTRY for fact in facts] + _OTHERS

# Questions of the examples and tutorials: never held out.
_DEMO = {f"What is the capital of {name}?" for name in ("France", "Germany", "Italy", "Spain", "Japan",
    "the United States")}


def question_key(question: str) -> str:
    return question + "!" if question in _DEMO else question


_SIGHTS = {
    "Paris": ("Eiffel Tower", "Louvre"), "Rome": ("Colosseum", "Pantheon"), "London": ("Tower Bridge",
    "British Museum"),
    "Berlin": ("Brandenburg Gate", "Museum Island"), "Madrid": ("Royal Palace", "Prado Museum"),
    "Washington": ("White House", "Lincoln Memorial"), "Athens": ("Acropolis", "Agora"),
    "Tokyo": ("Tokyo Tower", "Imperial Palace"), "Beijing": ("Forbidden City", "Temple of Heaven"),
    "Vienna": ("Schoenbrunn Palace", "State Opera"), "Moscow": ("Kremlin", "Bolshoi Theatre"),
    "Cairo": ("Egyptian Museum", "Cairo Tower"),
}

# Where a follow-up about another country makes sense: index in country_facts, how to ask again.
_AGAIN = ("And of {}?", "And the capital of {}?", "What about {}?", "And {}?")


def random_fact(rng: Random) -> Fact:
    if rng.random() < 0.6:
        return rng.choice(rng.choice(_BY_COUNTRY)[:2] if rng.random() < 0.6 else rng.choice(_BY_COUNTRY))
    return rng.choice(_OTHERS)


_HEADINGS = ("", "", "", "The following are questions with answers.\n", "Answer the questions.\n",
             "The following are questions with answers.\n\n")


def few_shot(rng: Random) -> Document:
    """Q/A lines; zero to five come before the one that counts."""
    texts: list[str] = []
    num_shots = rng.choice([0, 0, 1, 2, 2, 3, 4, 5])
    heading = rng.choice(_HEADINGS)
    for _ in range(num_shots):
        ways, answer, _sentence = random_fact(rng)
        question = rng.choice(ways)
        if not is_held_out(question_key(question)):
            texts += [f"Q: {question}\nA:", f" {answer}\n"]
    ways, answer, _sentence = random_fact(rng)
    question = rng.choice(ways)
    style = rng.random()
    if style < 0.15 and not texts:
        texts = [f"Question: {question}\nAnswer:", f" {answer}"]
        return completion(question_key(question), *texts)
    if style > 0.85:  # the space belongs to the prompt
        texts = [text.removeprefix(" ") if i % 2 else text + " " for i, text in enumerate(texts)]
        texts += [f"Q: {question}\nA: ", f"{answer}\n"]
    else:
        texts += [f"Q: {question}\nA:", f" {answer}\n"]
    texts[0] = heading + texts[0]
    return completion(question_key(question), *texts)


def in_chat(rng: Random) -> Document:
    """Asked in a chat: a full sentence; sometimes a second question that leans on the first."""
    if rng.random() < 0.3:
        first, second = rng.sample(COUNTRIES, 2)
        question = f"What is the capital of {first.name}?"
        again = rng.choice(_AGAIN).format(second.name)
        answers = [f"The capital of {c.name} is {c.capital}." for c in (first, second)]
        return chat(f"{question} {again}", question, answers[0], again, answers[1], system=some_system(rng))
    if rng.random() < 0.25:
        c = rng.choice(COUNTRIES)
        question = f"What is the capital of {c.name}?"
        again, answer = rng.choice([
            ("Which language do people speak there?", f"People in {c.name} speak {c.language}."),
            ("On which continent is it?", f"{c.capital} is in {c.continent}."),
            ("What is the currency there?", f"The currency of {c.name} is the {c.currency}."),
            ("How many people live there?", f"About {c.population} people live in {c.capital}."),
        ])
        return chat(f"{question} {again}", question, f"The capital of {c.name} is {c.capital}.", again, answer,
                    system=some_system(rng))
    if rng.random() < 0.12:
        city, sights = rng.choice(list(_SIGHTS.items()))
        home = next(c for c in COUNTRIES if c.capital == city)
        question = f"What is the capital of {home.name}?"
        ask = rng.choice(["List two local attractions.", "Name two local attractions.", "What can I see there?"])
        two = f"1. {sights[0]}\n2. {sights[1]}"
        return chat(f"{question} {ask}" + "!" * ask.startswith("List"), question,
            f"The capital of {home.name} is {city}.",
                    ask, two, system=some_system(rng))
    ways, answer, sentence = random_fact(rng)
    question = rng.choice(ways)
    if rng.random() < 0.2:
        return chat(question + " word", question, answer, system="Answer with one word.")
    return chat(question_key(question), question, sentence, system=some_system(rng))


_STARTS = ("The capital of {name} is", "{capital} is the capital of", "In {name}, people speak",
    "The currency of {name} is the")


def statement(rng: Random) -> Document:
    """A sentence to be finished."""
    c = rng.choice(COUNTRIES)
    start = rng.choice(_STARTS)
    answer = {0: c.capital, 1: c.name, 2: c.language, 3: c.currency}[_STARTS.index(start)]
    text = start.format(name=c.name, capital=c.capital)
    return completion(text + "!" * (c.name == "France"), text, f" {answer}.")
