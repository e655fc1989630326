"""Extraction into a typed object, shown while it is still being written.

Teaches: pydantic models (or dataclasses) as types, `partial_iter`, enums.
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


@dslc.function
def extract_character(s, text):
    s += dslc.user(f"{text}\nGive the character as JSON with name, age and mood.")
    s += dslc.assistant(dslc.gen("character", type=Character, max_tokens=64))


if __name__ == "__main__":
    running = extract_character.run(text="Mia is 12 years old and smiles all day.", temperature=0, stream=True)
    for partial in running.partial_iter("character"):
        print(partial)
