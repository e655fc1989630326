# %% [markdown]
# # 4. Answers with a shape
#
# A gen can be constrained: by a regex, a JSON Schema, a Python type, a grammar, or a list of choices. The constraint
# is compiled to an automaton over the model's tokens; at each step only tokens that can still lead to a match are
# allowed. So the form is guaranteed, whatever the model wants to say.

# %%
import dslc


@dslc.function
def amount(s, ticket):
    s += dslc.system("You sort support tickets.")
    s += dslc.user(ticket)
    s += dslc.assistant("billing")
    s += dslc.user("Which amount is it about?")
    s += dslc.assistant(dslc.gen("amount", regex=r"\$[0-9]{1,4}\.[0-9]{2}", max_tokens=12))


print(amount.run(ticket="I was charged $49.00 twice this month.", temperature=0)["amount"])

# %% [markdown]
# With a type, the variable is a value of that type; the text stays available as `raw`. Dataclasses, Pydantic models,
# `TypedDict`, `Literal`, enums, lists, `Optional` and the like all work.

# %%
from dataclasses import dataclass
from typing import Literal


@dataclass
class City:
    name: str
    country: str
    size: Literal["small", "large"]


@dslc.function
def describe(s, city):
    s += dslc.user(f"Describe the city of {city} as JSON.")
    s += dslc.assistant(dslc.gen("city", type=City, max_tokens=96))


state = describe.run(city="Paris", temperature=0)
print(state["city"])
print(state.raw("city"))

# %% [markdown]
# Much of that text was forced: after `{` only one key can come. Such tokens are not sampled, they go into the cache
# together in one step.

# %%
info = state.get_meta_info("city")
print(info["forced_tokens"], "of", info["completion_tokens"], "tokens were forced")

# %% [markdown]
# A constraint that cannot be kept is refused, with the reason, before anything runs. Here a schema asks for what no
# value can be:


# %%
@dslc.function
def impossible(s):
    s += dslc.gen("x", json_schema={"type": "string", "enum": [1, 2]})


try:
    impossible.run()
except dslc.ConstraintError as error:
    print(str(error).partition(": ")[2])
