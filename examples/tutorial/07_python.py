# %% [markdown]
# # 7. Python in between
#
# A program is a Python function, so between its gens it can do what Python can: branch, loop, call your functions. It
# runs once, with its real arguments, and only as far ahead as it can without knowing what the model says.

# %%
import dslc


def calculate(expression):
    """The value of a sum or a product of two whole numbers."""
    for sign, compute in (("+", int.__add__), ("*", int.__mul__)):
        left, found, right = expression.strip().partition(sign)
        if found:
            return compute(int(left), int(right))
    raise ValueError(f"{expression!r} is neither a sum nor a product")


@dslc.function
def with_a_tool(s, question):
    s += f"To answer this question: {question} I need to use a"
    s += dslc.select("tool", [" calculator", " search engine"])
    if s["tool"] == " calculator":
        s += ". The math expression is" + dslc.gen("input", max_tokens=16, stop=["\n", ".", "="])
        s += f" = {calculate(s['input'])}\nAnswer:" + dslc.gen("answer", max_tokens=8, stop="\n")


state = with_a_tool.run(question="What is 12 + 30?", temperature=0)
print(state["input"].strip(), "=", state["answer"].strip())

# %% [markdown]
# The compiler follows all of this: the branch, the call, the f-string around its result. Your function is not run
# while it does so; the call becomes an op of the program.

# %%
program = with_a_tool.compile(strict=True)
print(program.is_whole)

# %% [markdown]
# The other way round, the model can choose the call: `tools=` derives a schema from the signatures of your functions,
# constrains the answer to a call of one of them, and parses it. You decide whether to run it.

# %%
from typing import Literal


def capital(country: Literal["France", "Italy", "Spain"]) -> str:
    """The capital of a country."""
    return {"France": "Paris", "Italy": "Rome", "Spain": "Madrid"}[country]


@dslc.function
def with_tools(s, question):
    s += dslc.user(question)
    s += dslc.assistant(dslc.gen("call", tools=[capital], max_tokens=48))
    return s["call"].run()


state = with_tools.run(question="What is the capital of Italy?", temperature=0)
print(state.raw("call"))
print(state.ret_value)
