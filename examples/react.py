"""ReAct: thoughts, actions and observations in turn, until the model finishes.

Teaches: loops over generated values, `select` as a decision, tools as plain Python.
"""

import dslc

FACTS = {"France": "Paris is the capital of France.", "Spain": "Madrid is the capital of Spain."}


def look_up(subject: str) -> str:
    return next((fact for name, fact in FACTS.items() if name in subject), "Nothing is known about it.")


@dslc.function
def react(s, question, max_steps=3):
    s += f"Question: {question}\n"
    for step in range(1, max_steps + 1):
        s += f"Thought {step}:" + dslc.gen("thought", max_tokens=24, stop="\n")
        s += f"\nAction {step}: " + dslc.select("action", ["Search", "Finish"]) + "["
        s += dslc.gen("subject", max_tokens=12, stop=["]", "\n"]) + "]\n"
        if s["action"] == "Finish":
            return s["subject"]
        s += f"Observation {step}: {look_up(s['subject'])}\n"
    return None


if __name__ == "__main__":
    state = react.run(question="What is the capital of France?", temperature=0)
    print(state.text())
    print("Answer:", state.ret_value)
