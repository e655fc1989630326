"""JSON by a type: a dataclass constrains the text, and the value comes back as one.

Teaches: `gen(type=)`, `state.raw`, types that nest.
"""

from dataclasses import dataclass
from typing import Literal

import dslc


@dataclass
class City:
    name: str
    country: str
    size: Literal["small", "large"]


@dslc.function
def city_by_type(s, city):
    s += dslc.user(f"Describe the city of {city} as JSON.")
    s += dslc.assistant(dslc.gen("city", type=City, max_tokens=96))


if __name__ == "__main__":
    state = city_by_type.run(city="Paris", temperature=0)
    print(state.raw("city"))
    print(state["city"])
