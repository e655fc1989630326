"""Tools by schema: the model's text is constrained to a call of one of the functions, parsed, and run on request.

Teaches: `gen(tools=)`, `ToolCall.run`, errors of tools.
"""

from typing import Literal

import dslc

Digit = Literal[1, 2, 3, 4, 5, 6, 7, 8, 9]


def calculate(left: Digit, operator: Literal["+", "*", "/"], right: Digit) -> float:
    """Compute with two digits."""
    return {"+": left + right, "*": left * right, "/": left / right}[operator]


def capital(country: Literal["France", "Italy", "Spain"]) -> str:
    """The capital of a country."""
    return {"France": "Paris", "Italy": "Rome", "Spain": "Madrid"}[country]


@dslc.function
def tool_call(s, question):
    s += dslc.user(question)
    s += dslc.assistant(dslc.gen("call", tools=[calculate, capital], max_tokens=96))
    try:
        result = s["call"].run()
    except dslc.ToolError as error:
        result = f"error: {error.__cause__}"
    s += dslc.user(f"The result is {result}. {question}")
    s += dslc.assistant(dslc.gen("answer", max_tokens=24, stop="\n"))
    return result


if __name__ == "__main__":
    state = tool_call.run(question="What is 2 + 3?", temperature=0)
    print(state.raw("call"), "->", state.ret_value)
    print(state["answer"])
