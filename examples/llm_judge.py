"""A judge with several views: each dimension is judged in a branch, then a verdict over all.

Teaches: branches with a common beginning, `gen` with a number type, lists of typed values.
"""

import dslc

DIMENSIONS = ("Clarity", "Correctness", "Brevity")


@dslc.function
def llm_judge(s, text):
    s += dslc.system("You judge short texts.")
    s += dslc.user(f"The text: {text}")
    branches = s.fork(len(DIMENSIONS))
    for dimension, branch in zip(DIMENSIONS, branches, strict=True):
        branch += dslc.user(f"Judge it by {dimension.lower()}. A sentence, then a number from 1 to 9.")
        branch += dslc.assistant(
            dslc.gen("judgement", max_tokens=24, stop=".") + ". " + dslc.gen("grade", regex="[1-9]", max_tokens=2)
        )
    branches.join()
    grades = [int(grade) for grade in s["grade"]]
    s += dslc.user("In all?")
    s += dslc.assistant(dslc.select("verdict", ["good", "fair", "poor"]))
    return sum(grades) / len(grades)


if __name__ == "__main__":
    state = llm_judge.run(text="The capital of France is Paris.", temperature=0)
    print(state["grade"], state.ret_value, state["verdict"])
