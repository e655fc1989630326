"""A program whose values are typed from end to end: `mypy --strict --disallow-any-expr` has nothing to say about it.

Teaches: generations as constants with types, reading them by `state[GENERATION]`, typed batches, branches and results.

A generation that is written once, outside of the program, is both what the program appends and the key under which its
value is read: `CHARACTER` is a `GenExpr[Character]`, so `state[CHARACTER]` is a `Character`. Reading by name,
`state["character"]`, is the same value for those who do not check types.
"""

import enum
from dataclasses import dataclass

import dslc


class Mood(enum.Enum):
    HAPPY = "happy"
    SAD = "sad"
    CALM = "calm"


@dataclass
class Character:
    name: str
    age: int
    mood: Mood


CHARACTER = dslc.gen("character", type=Character, max_tokens=64, finish_valid=True)
GROUP = dslc.select("group", ["child", "grown-up"])
TITLE = dslc.gen("title", 12, stop="\n", temperature=0)


@dslc.function
def extract(s: dslc.ProgramState, text: str) -> None:
    s += dslc.user(f"{text}\nGive the character as JSON with name, age and mood.")
    s += dslc.assistant(CHARACTER)
    s += dslc.user("Is the character a child or a grown-up?")
    s += dslc.assistant(GROUP)
    s += dslc.user("Give the story a title.")
    s += dslc.assistant(TITLE)


def line(state: dslc.ProgramState) -> str:
    character = state[CHARACTER]
    years = 100 - character.age  # an int: a checker refuses character.age + "1"
    return f"{character.name}, {character.mood.value}, a {state[GROUP]}, {years} years to a hundred"


TEXTS = ["Mia is 12 years old and smiles all day.", "Tom is 41 years old and cries at night."]

if __name__ == "__main__":
    for state in extract.run_batch([{"text": text} for text in TEXTS], temperature=0):
        print(line(state))
