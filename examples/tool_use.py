"""A tool between two generations: the model chooses one and writes its input, the program runs it, the answer uses it.

Teaches: `select` as a decision, branches on generated values, tools as plain Python. `tool_call.py` does it by schema.
"""

import dslc


def calculate(expression: str) -> str:
    """The value of a sum or product of two whole numbers."""
    for sign, compute in (("+", int.__add__), ("-", int.__sub__), ("*", int.__mul__)):
        left, found, right = expression.strip().partition(sign)
        if found and left.strip().isdigit() and right.strip().isdigit():
            return str(compute(int(left), int(right)))
    return "not known"


def search(words: str) -> str:
    """The one fact that this search engine knows."""
    return "Paris" if "France" in words else "not known"


@dslc.function
def tool_use(s, question):
    s += f"To answer this question: {question} I need to use a"
    s += dslc.select("tool", [" calculator", " search engine"])
    if s["tool"] == " calculator":
        s += ". The math expression is" + dslc.gen("input", max_tokens=16, stop=["\n", ".", "="])
        result = calculate(s["input"])
    else:
        s += ". The key word to search is" + dslc.gen("input", max_tokens=16, stop=["\n", "."])
        result = search(s["input"])
    s += f" = {result}\nAnswer:" + dslc.gen("answer", max_tokens=12, stop="\n")
    return result


if __name__ == "__main__":
    for question in ("What is 12 + 30?", "What is the capital of France?"):
        state = tool_use.run(question=question, temperature=0)
        print(f"{question}{state['tool']}({state['input'].strip()}) = {state.ret_value}:{state['answer']}")
