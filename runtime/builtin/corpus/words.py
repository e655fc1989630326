"""Names, places and things that several families share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from random import Random


@dataclass(frozen=True, slots=True)
class Country:
    name: str
    capital: str
    language: str
    currency: str
    continent: str
    population: int  # of the capital, rounded


def words(text: str) -> list[str]:
    """The words of a text, in order."""
    return text.split()


COUNTRIES = tuple(
    Country(*row)
    for row in (
        ("France", "Paris", "French", "euro", "Europe", 2100000),
        ("Germany", "Berlin", "German", "euro", "Europe", 3700000),
        ("Italy", "Rome", "Italian", "euro", "Europe", 2800000),
        ("Spain", "Madrid", "Spanish", "euro", "Europe", 3300000),
        ("Portugal", "Lisbon", "Portuguese", "euro", "Europe", 550000),
        ("Greece", "Athens", "Greek", "euro", "Europe", 660000),
        ("Austria", "Vienna", "German", "euro", "Europe", 1900000),
        ("Ireland", "Dublin", "English", "euro", "Europe", 590000),
        ("Finland", "Helsinki", "Finnish", "euro", "Europe", 660000),
        ("Belgium", "Brussels", "Dutch", "euro", "Europe", 190000),
        ("the Netherlands", "Amsterdam", "Dutch", "euro", "Europe", 900000),
        ("Poland", "Warsaw", "Polish", "zloty", "Europe", 1800000),
        ("Hungary", "Budapest", "Hungarian", "forint", "Europe", 1700000),
        ("Czechia", "Prague", "Czech", "koruna", "Europe", 1300000),
        ("Sweden", "Stockholm", "Swedish", "krona", "Europe", 980000),
        ("Norway", "Oslo", "Norwegian", "krone", "Europe", 710000),
        ("Denmark", "Copenhagen", "Danish", "krone", "Europe", 650000),
        ("Romania", "Bucharest", "Romanian", "leu", "Europe", 1800000),
        ("Bulgaria", "Sofia", "Bulgarian", "lev", "Europe", 1300000),
        ("Ukraine", "Kyiv", "Ukrainian", "hryvnia", "Europe", 2900000),
        ("Russia", "Moscow", "Russian", "rouble", "Europe", 13000000),
        ("the United Kingdom", "London", "English", "pound", "Europe", 8900000),
        ("Turkey", "Ankara", "Turkish", "lira", "Asia", 5700000),
        ("Japan", "Tokyo", "Japanese", "yen", "Asia", 14000000),
        ("China", "Beijing", "Chinese", "yuan", "Asia", 22000000),
        ("India", "New Delhi", "Hindi", "rupee", "Asia", 250000),
        ("Thailand", "Bangkok", "Thai", "baht", "Asia", 9000000),
        ("Vietnam", "Hanoi", "Vietnamese", "dong", "Asia", 8000000),
        ("South Korea", "Seoul", "Korean", "won", "Asia", 9400000),
        ("Indonesia", "Jakarta", "Indonesian", "rupiah", "Asia", 10600000),
        ("the Philippines", "Manila", "Filipino", "peso", "Asia", 1800000),
        ("Iran", "Tehran", "Persian", "rial", "Asia", 9000000),
        ("Mongolia", "Ulaanbaatar", "Mongolian", "tugrik", "Asia", 1500000),
        ("Egypt", "Cairo", "Arabic", "pound", "Africa", 10000000),
        ("Kenya", "Nairobi", "Swahili", "shilling", "Africa", 4400000),
        ("Morocco", "Rabat", "Arabic", "dirham", "Africa", 580000),
        ("Ghana", "Accra", "English", "cedi", "Africa", 2500000),
        ("Ethiopia", "Addis Ababa", "Amharic", "birr", "Africa", 3900000),
        ("Canada", "Ottawa", "English", "dollar", "North America", 1000000),
        ("Mexico", "Mexico City", "Spanish", "peso", "North America", 9200000),
        ("Cuba", "Havana", "Spanish", "peso", "North America", 2100000),
        ("the United States", "Washington", "English", "dollar", "North America", 690000),
        ("Brazil", "Brasilia", "Portuguese", "real", "South America", 3000000),
        ("Argentina", "Buenos Aires", "Spanish", "peso", "South America", 3100000),
        ("Chile", "Santiago", "Spanish", "peso", "South America", 6200000),
        ("Peru", "Lima", "Spanish", "sol", "South America", 10000000),
        ("Colombia", "Bogota", "Spanish", "peso", "South America", 7900000),
        ("Australia", "Canberra", "English", "dollar", "Oceania", 460000),
        ("New Zealand", "Wellington", "English", "dollar", "Oceania", 210000),
    )
)
CONTINENTS = ("Europe", "Asia", "Africa", "North America", "South America", "Oceania")

NAMES = words(
    "Ada Alan Alice Amir Ana Anna Ben Bob Carla Carlos Chen Clara Daniel David Diego Elena Emma Eric Eva Felix Fatima "
    "Grace Hana Hugo Ines Ivan Jack James Jana Julia Kai Karl Kim Lea Leo Lena Lily Lina Luca Lucy Maria Mark Maya "
    "Mia Mila Nadia Nina Noah Nora Olga Oliver Omar Oscar Otto Paul Pedro Peter Priya Rosa Sam Sara Sofia Tim Tom "
    "Vera Victor Wei Yara Yuki Zoe"
)
ANIMALS = words("cat dog fox bear rabbit owl mouse horse frog duck turtle squirrel hedgehog penguin")
COLOURS = words("red blue green yellow black white orange purple brown pink grey")
THINGS = words(
    "lamp book car bike ball hat coat cup key bag box pen chair clock kite drum phone table ring boat guitar umbrella "
    "bottle map watch scarf camera basket candle"
)
FRUIT = words("apple banana cherry grape lemon mango melon peach pear plum")
JOBS = words("baker teacher doctor farmer painter pilot singer writer nurse gardener builder cook driver lawyer")
PLACES = words("park garden kitchen library school station market forest beach office museum castle")
PETS = words("cat dog parrot rabbit hamster goldfish")

_OPENINGS = words(
    "Ar Bel Bra Bru Cal Cor Dal Del Dor El Fal Fen Gal Gor Hal Hol Il Jar Kal Kel Kor Lan Lor Mar Mel Mor Nar Nel Or "
    "Pal Per Quin Ral Ren Ros Sal Sel Sor Tal Tor Ul Val Vel Vor Wil Yor Zan Zel"
)
_MIDDLES = words("a an ar di do e el en i in ka la li lo ma mi na ne no o or ra ri ro sa ta ti va vi")
_ENDINGS = words(
    "bar dan den dor fin gar kin las len lin lor mar mir nik non ra rak rin ros san ta tan tis ton va vik wen"
)


def nonce(rng: Random) -> str:
    """An invented name, such as Velmarin: two to three syllables, over 30,000 of them."""
    middle = rng.choice(_MIDDLES) if rng.random() < 0.7 else ""
    return rng.choice(_OPENINGS) + middle + rng.choice(_ENDINGS)


def nonces(rng: Random, count: int) -> list[str]:
    """Different invented names, no two with the same opening."""
    names: list[str] = []
    while len(names) < count:
        name = nonce(rng)
        if all(name[:2] != other[:2] for other in names):
            names.append(name)
    return names


def person(rng: Random) -> str:
    """A first name, known or invented."""
    return rng.choice(NAMES) if rng.random() < 0.6 else nonce(rng)


def people(rng: Random, count: int) -> list[str]:
    names: list[str] = []
    while len(names) < count:
        name = person(rng)
        if all(name[:2] != other[:2] for other in names):
            names.append(name)
    return names


def a(noun: str) -> str:
    """`noun` with its indefinite article."""
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def listed(items: list[str]) -> str:
    """'x', 'x and y', 'x, y and z'."""
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1]


def big(rng: Random) -> int:
    """A population: one to three leading digits, then zeros."""
    return rng.randint(1, 999) * 10 ** rng.choice([3, 3, 4, 4, 5])
