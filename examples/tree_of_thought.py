"""Tree of thought: several plans, several ways to carry out each, all beside each other; the best by its own score.

Teaches: forks within forks, lists of lists from joins, plain Python over generated values.
"""

import dslc


@dslc.function
def tree_of_thought(s, question):
    s += f"Question: {question}\n"
    plans = s.fork(2)
    for plan in plans:
        plan += "Plan:" + dslc.gen("plan", max_tokens=16, stop="\n", temperature=0.8) + "\n"
        ways = plan.fork(2)
        ways += "Answer:" + dslc.gen("answer", max_tokens=12, stop="\n", temperature=0.8) + "\n"
        ways += "Score (1 to 9): " + dslc.select("score", ["1", "3", "5", "7", "9"])
        ways.join()
    plans.join()
    ranked = sorted((int(score), answer) for scores, answers in zip(s["score"], s["answer"], strict=True)
                    for score, answer in zip(scores, answers, strict=True))  # fmt: skip
    s += f"The best answer:{ranked[-1][1]}"
    return ranked[-1][1]


if __name__ == "__main__":
    state = tree_of_thought.run(question="How much is 3 + 4?", seed=1)
    print(state["plan"], state["answer"], state["score"])
    print(state.text())
