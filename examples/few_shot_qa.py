"""Few-shot question answering: examples as Python data, a stop string, and a batch that shares the examples.

Teaches: f-strings, loops over data, `gen` with `stop`, `run_batch`. The examples are the common beginning of all four
prompts, so they are computed once.
"""

import dslc

EXAMPLES = [
    ("What is the capital of France?", "Paris"),
    ("How many hours are there in a day?", "24"),
    ("Which language do people speak in Italy?", "Italian"),
]
QUESTIONS = [
    "What is the capital of Germany?",
    "How many days are there in a year?",
    "What is the capital of Spain?",
    "Which language do people speak in Brazil?",
]


@dslc.function
def few_shot_qa(s, question):
    for asked, answer in EXAMPLES:
        s += f"Q: {asked}\nA: {answer}\n"
    s += f"Q: {question}\nA:"
    s += dslc.gen("answer", max_tokens=8, stop="\n", temperature=0)


if __name__ == "__main__":
    for question, state in zip(QUESTIONS, few_shot_qa.run_batch([{"question": q} for q in QUESTIONS]), strict=True):
        print(f"{question} {state['answer'].strip()}")
