"""Longer text: tips that are expanded, short stories, lists and copies."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .documents import Document, chat, completion, some_system
from .words import ANIMALS, COLOURS, FRUIT, NAMES, PLACES, THINGS, a, listed, nonce, person

if TYPE_CHECKING:
    from random import Random

_TIPS: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = (
    ("staying healthy", (
        ("Balanced Diet", "A balanced diet means eating many kinds of food. "
         "Fruit, vegetables and grains give the body what it needs."),
        ("Regular Exercise", "Regular exercise keeps the heart strong. "
         "Half an hour of walking every day is a good start."),
        ("Enough Sleep", "Enough sleep lets the body rest. "
         "Most people need seven to nine hours every night."),
        ("Drink Water", "Drinking water keeps the body working. "
         "A glass with every meal is easy to remember."))),
    ("learning a language", (
        ("Daily Practice", "Daily practice keeps new words fresh. "
         "Ten minutes every day are better than one hour a week."),
        ("Read Books", "Reading books shows how words are used. Start with short books for children."),
        ("Find Friends", "Finding friends who speak the language makes learning fun. Talk to them every week."),
        ("Watch Films", "Watching films trains the ear. Turn on the subtitles at first."))),
    ("saving money", (
        ("Make a Plan", "Making a plan shows where the money goes. Write down what you spend each day."),
        ("Cook at Home", "Cooking at home is cheaper than eating out. It is often healthier too."),
        ("Wait a Day", "Waiting a day before buying saves money. Often you no longer want the thing."),
        ("Compare Prices", "Comparing prices takes little time. The same thing is often cheaper in another shop."))),
    ("writing code", (
        ("Write Tests", "Writing tests shows that the code works. Run them after every change."),
        ("Use Clear Names", "Using clear names makes code easy to read. A good name says what a thing is for."),
        ("Keep It Small", "Keeping functions small makes them easy to change. Each function should do one thing."),
        ("Take Breaks", "Taking breaks helps to find mistakes. Many bugs are solved on a short walk."))),
    ("growing plants", (
        ("Enough Light", "Enough light lets plants grow. Put them near a window."),
        ("Water Slowly", "Watering slowly helps the roots to drink. Too much water is as bad as too little."),
        ("Good Soil", "Good soil feeds the plant. Change it once a year."),
        ("Clean Leaves", "Clean leaves catch more light. Wipe off the dust now and then."))),
    ("travelling", (
        ("Pack Light", "Packing light makes every trip easier. Take only what you can carry."),
        ("Plan Early", "Planning early saves money. Trains and hotels are cheaper months before."),
        ("Learn Hello", "Learning to say hello opens doors. People like it when you try their language."),
        ("Keep Copies", "Keeping copies of your papers helps when they are lost. Store them in your mail."))),
    ("sleeping well", (
        ("Dark Room", "A dark room tells the body that it is night. Thick curtains help."),
        ("Same Time", "Going to bed at the same time trains the body. Do it on weekends too."),
        ("No Screens", "No screens before bed keeps the mind calm. Read a book instead."),
        ("Less Coffee", "Less coffee in the afternoon makes it easier to fall asleep. Drink tea instead."))),
    ("making friends", (
        ("Ask Questions", "Asking questions shows that you care. People like to talk about what they do."),
        ("Join a Club", "Joining a club brings you close to people who like the same things. Go every week."),
        ("Be Kind", "Being kind is the best way to be liked. A smile costs nothing."),
        ("Stay in Touch", "Staying in touch keeps a friendship alive. A short message is enough."))),
)
_ALL_TIPS = [tip for _topic, tips in _TIPS for tip in tips]


def tips(rng: Random) -> Document:
    """Two tips in short, each expanded into a paragraph; as one text or one by one."""
    topic, known = rng.choice(_TIPS)
    (one, long_one), (two, long_two) = rng.sample(known, 2)
    if topic == "staying healthy" and rng.random() < 0.5:
        (one, long_one), (two, long_two) = known[:2]
    key = f"tips {topic} {one} {two}"
    short = f"Here are two tips for {topic}: 1. {one}. 2. {two}."
    style = rng.choice([0, 0, 1, 2, 3, 4, 5, 6])
    if style == 0:
        which = rng.randrange(2)
        name, text = (one, two)[which], (long_one, long_two)[which]
        lead = rng.choice([f"Now, expand tip {which + 1} into a paragraph:\n",
            f"Expand tip {which + 1} into a paragraph:\n"])
        return completion(f"{key} {which}", f"{short}\n\n{lead}", text)
    if style == 1:
        name, text = rng.choice(known)
        lead = rng.choice([
            f"Please expand the following tip into a detailed paragraph:\n{name}\n",
            f"Please expand the following tip into a detailed paragraph: {name}\n",
            f"Please expand the following tip into a paragraph: {name}\n"])
        return completion(f"{lead}!", lead, text)
    if style == 2:
        name, text = rng.choice(known)
        ask = rng.choice([f"Expand this tip: {name}", f"Expand the tip: {name}.",
            f"Please expand this tip into a paragraph: {name}"])
        return chat(f"{ask}!", ask, text, system=some_system(rng))
    if style == 3:
        ask = rng.choice([f"Give me two tips for {topic}.", f"Name two tips for {topic}.",
            f"How do I get better at {topic}?"])
        (one, long_one), (two, long_two) = known[:2]
        first = f"1. {one}. 2. {two}."
        turns = [ask, first]
        for which, text in rng.sample([(1, long_one), (2, long_two)], rng.randint(0, 2)):
            turns += [f"Expand tip {which}.", text]
        return chat(f"{ask} {len(turns)}!", *turns, system=some_system(rng))
    if style == 4:
        return completion(f"{topic}!", f"Here are two tips for {topic}: 1.", f" {known[0][0]}. 2. {known[1][0]}.")
    if style == 6:
        space = rng.choice(["", " "])
        text = f"{short}\n\nTip 1:{space}{long_one}\nTip 2:{space}{long_two}\nIn summary"
        return completion(f"{key} summary", text, f", {one} and {two} help with {topic}.")
    return completion(f"{key} all", f"{short}\n\nTip 1: {one}\n", long_one, f"\nTip 2: {two}\n", long_two,
                      "\nTo summarise:", f" {one} and {two} help with {topic}.")


def skeleton(rng: Random) -> Document:
    """A numbered outline of three points, then each point as a sentence."""
    topic, known = rng.choice(_TIPS)
    points = rng.sample(known, 3)
    outline = "\n".join(f"{i}. {name}" for i, (name, _text) in enumerate(points, 1))
    which = rng.randint(1, 3)
    _name, text = points[which - 1]
    key = f"skeleton {topic} {outline} {which}"
    if rng.random() < 0.5:
        return completion(key, f"Topic: {topic}\nSkeleton:\n{outline}\nWrite point {which}:", f" {text}")
    return chat(key, f"Topic: {topic}\n{outline}\nExpand point {which}.", text, system=some_system(rng))


_PLOTS: tuple[tuple[str, str], ...] = (
    ("found", "One day {name} went to the {place} and saw {a_colour} {thing}. {name} took it home and cleaned it. "
              "From then on, the {thing} stood next to the bed."),
    ("lost", "One day {name} lost {a_colour} {thing} at the {place}. {name} looked for it all day. "
             "In the evening a friend brought the {thing} back."),
    ("shared", "One day {name} brought {a_colour} {thing} to the {place}. Everybody wanted to see it. "
               "{name} let everyone hold the {thing}, and they all became friends."),
)


def story(rng: Random) -> Document:
    """A small animal, a place and a thing; the plot follows from a word in the request."""
    verb, plot = rng.choice(_PLOTS)
    name, animal, place = person(rng), rng.choice(ANIMALS), rng.choice(PLACES)
    colour, thing = rng.choice(COLOURS), rng.choice(THINGS)
    slots = {"name": name, "place": place, "a_colour": a(colour), "thing": thing}
    key = f"story {name} {animal} {place} {thing}"
    opening = f"Once upon a time there was {a(animal)} called {name}."
    body = plot.format(**slots)
    if rng.random() < 0.5:
        ask = f"Tell a short story about {a(animal)} called {name} who {verb} {a(colour)} {thing} at the {place}."
        return chat(key, ask, f"{opening} {body}", system=some_system(rng))
    first, rest = body.split(". ", 1)
    if rng.random() < 0.5:
        return completion(key, f"{opening} {first}.", f" {rest}")
    return chat(key, f"Continue the story: {opening} {first}.", rest, system=some_system(rng))


def _something(rng: Random) -> str:
    kind = rng.randrange(7)
    if kind == 0:
        return nonce(rng)
    if kind == 1:
        return " ".join(rng.choice([nonce(rng), rng.choice(NAMES)]) for _ in range(rng.randint(2, 4)))
    if kind == 2:
        return " ".join(rng.choices(ANIMALS + COLOURS + THINGS + FRUIT + PLACES, k=rng.randint(1, 5)))
    if kind == 3:
        return str(rng.randint(0, 10 ** rng.randint(1, 9)))
    if kind == 4:
        return listed(rng.sample(THINGS + FRUIT, rng.randint(2, 4)))
    if kind == 5:
        return f"{rng.choice(NAMES)} saw {a(rng.choice(COLOURS))} {rng.choice(THINGS)} at the {rng.choice(PLACES)}."
    letters = "abcdefghijklmnopqrstuvwxyz"
    return "".join(rng.choice(letters) for _ in range(rng.randint(2, 6)))


def copying(rng: Random) -> Document:
    """Say it again, at a line start, in quotes, in brackets, or as a list."""
    text = _something(rng)
    key = f"copy {text}"
    style = rng.randrange(8)
    if style == 0:
        return chat(key, rng.choice([f"Repeat: {text}", f"Repeat after me: {text}", f"Say {text}"]), text,
            system=some_system(rng))
    if style == 1:
        return chat(key, f"Put this in quotes: {text}", f'"{text}"', system=some_system(rng))
    if style == 2:
        return completion(key, f"Text: {text}\nCopy:", f" {text}")
    if style == 3:
        return completion(key, f"{text}\n{text}\n", text)
    if style == 4:
        return completion(key, f"Put in brackets: {text}\n[", f"{text}]")
    if style == 5:
        return completion(key, f'Text: "{text}"\nCopy: "', f'{text}"')
    if style == 6:
        items = rng.sample(THINGS + FRUIT + NAMES, rng.randint(2, 5))
        return chat(f"copy {items}", "List these, one a line: " + listed(items),
            "\n".join(f"- {item}" for item in items))
    items = rng.sample(THINGS + FRUIT + ANIMALS + NAMES, rng.randint(2, 5))
    return completion(f"copy {items}", f"Items: {listed(items)}\nNumbered list:\n1.",
                      "".join((f"\n{i}." if i > 1 else "") + f" {item}" for i, item in enumerate(items, 1)))
