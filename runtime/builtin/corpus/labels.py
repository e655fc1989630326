"""Reviews to be called positive or negative, and addresses, dates and numbers to be found in a message."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .documents import Document, chat, completion, some_system
from .words import NAMES, PLACES, THINGS, nonce, person

if TYPE_CHECKING:
    from random import Random

_GOOD = ("I love this {thing}.", "The {thing} is great.", "A wonderful {thing}, I use it every day.",
         "This {thing} works very well.", "The best {thing} I have ever had.", "I am very happy with the {thing}.",
         "The {place} was beautiful and clean.", "We had a great time at the {place}.",
         "Friendly people at the {place}.",
         "{name} was very kind to us.", "What a great film!", "The food was delicious.",
         "I would buy this {thing} again.")
_BAD = ("I hate this {thing}.", "The {thing} is terrible.", "A bad {thing}, I never use it.",
        "This {thing} does not work at all.", "The worst {thing} I have ever had.",
        "I am very unhappy with the {thing}.",
        "The {place} was ugly and dirty.", "We had a terrible time at the {place}.", "Rude people at the {place}.",
        "{name} was very rude to us.", "What a boring film!", "The food was cold and awful.",
        "I want my money back for this {thing}.",
        "The {thing} broke after one day.")
_MORE_GOOD = ("", "", " I can recommend it.", " Five stars.", " Thank you!")
_MORE_BAD = ("", "", " Never again.", " One star.", " What a waste of money.")


def sentiment(rng: Random) -> Document:
    is_good = rng.random() < 0.5
    template = rng.choice(_GOOD if is_good else _BAD)
    text = template.format(thing=rng.choice(THINGS), place=rng.choice(PLACES), name=rng.choice(NAMES))
    text += rng.choice(_MORE_GOOD if is_good else _MORE_BAD)
    verdict = "positive" if is_good else "negative"
    key = f"sentiment {text}"
    style = rng.randrange(4)
    if style == 0:
        return completion(key, f"Review: {text}\nSentiment:", f" {verdict}")
    if style == 1:
        return chat(key, text, verdict, system="Is the review positive or negative?")
    if style == 2:
        return chat(key, f"Is this review positive or negative?\n{text}", verdict, system=some_system(rng))
    return chat(key, f"What is the sentiment of this review: positive or negative?\n{text}", verdict,
        system=some_system(rng))


def finding(rng: Random) -> Document:
    """An e-mail address, a telephone number, a date, an order number or a name in a message."""
    name = person(rng)
    mail = f"{name.lower()}@{nonce(rng).lower()}.{rng.choice(['com', 'org', 'net', 'io'])}"
    phone = f"555-{rng.randint(100, 999)}-{rng.randint(1000, 9999)}"
    date = f"{rng.randint(2020, 2029)}-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d}"
    order = str(rng.randint(1000, 99999))
    found = {"email address": mail, "phone number": phone, "date": date, "order number": order, "name": name}
    sentences = {
        "email address": [f"Write to {mail}.", f"My email address is {mail}.", f"You can reach me at {mail}."],
        "phone number": [f"Call me at {phone}.", f"My phone number is {phone}.", f"The number is {phone}."],
        "date": [f"It was on {date}.", f"The date is {date}.", f"Please come on {date}."],
        "order number": [f"It is about order {order}.", f"My order number is {order}."],
        "name": [f"My name is {name}.", f"I am {name}.", f"Hi, {name} here."],
    }
    wanted = rng.choice(list(found))
    others = rng.sample([what for what in found if what != wanted], rng.randint(0, 3))
    told = [rng.choice(sentences[what]) for what in (wanted, *others)]
    rng.shuffle(told)
    text = " ".join(told)
    key = f"find {wanted} {text}"
    style = rng.randrange(3)
    if style == 0:
        return completion(key, f"Text: {text}\n{wanted.capitalize()}:", f" {found[wanted]}")
    ask = rng.choice([f"What is the {wanted}?", f"Find the {wanted}.", f"Extract the {wanted}."])
    if style == 1:
        return completion(key, f"{text}\nQ: {ask}\nA:", f" {found[wanted]}\n")
    return chat(key, f"{text}\n{ask}", found[wanted], system=some_system(rng))
