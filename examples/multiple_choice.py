"""Choosing between given texts: each choice is scored as tokens after the prompt, in one pass.

Teaches: `select`, what the meta info says about all choices, `run_batch` over tuples.
"""

import dslc

QUESTIONS = (
    ("What is the capital of France?", "Rome", "Paris"),
    ("What is 3 + 4?", "7", "9"),
    ("What is the capital of Spain?", "Madrid", "Berlin"),
)


@dslc.function
def multiple_choice(s, question, first, second):
    s += dslc.user(f"Question: {question}\nAnswer A: {first}\nAnswer B: {second}\nWhich answer is right, A or B?")
    s += dslc.assistant(dslc.select("answer", ["A", "B"]))


if __name__ == "__main__":
    for row, state in zip(QUESTIONS, multiple_choice.run_batch(QUESTIONS), strict=True):
        scores = state.get_meta_info("answer")["normalized_prompt_logprobs"]
        print(f"{row[0]} {state['answer']}  {[round(score, 2) for score in scores]}")
