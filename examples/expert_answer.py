"""Asking who would know, then asking them: the first answer is part of the second question.

Teaches: generated values in f-strings, programs called from programs.
"""

import dslc


@dslc.function
def find_expert(s, question):
    s += dslc.user(f"Who could answer this well? {question}")
    s += dslc.assistant(dslc.gen("expert", max_tokens=12, stop=[".", "\n"]))
    return s["expert"]


@dslc.function
def expert_answer(s, question):
    s += dslc.system("You answer questions.")
    expert = find_expert(s, question)
    s += dslc.user(f"Now answer as {expert.strip()} would: {question}")
    s += dslc.assistant(dslc.gen("answer", max_tokens=32, stop="\n"))


if __name__ == "__main__":
    print(expert_answer.run(question="What is the capital of Italy?", temperature=0).text())
