"""Two pictures, then questions about them side by side: the pictures are encoded once, and their prompt computed once.

Teaches: `dslc.image`, a fork after pictures, `select` about a picture, counters. Needs a model that sees:

    python examples/picture_comparison.py MODEL_FOLDER first.png second.png
"""

import sys

import dslc

QUESTIONS = ("What differs?", "Which is brighter?", "What do both show?")


@dslc.function
def compare(s, first, second):
    s += "USER: First " + dslc.image(first) + "\nSecond " + dslc.image(second) + "\n"
    forks = s.fork(len(QUESTIONS))
    for fork, question in zip(forks, QUESTIONS, strict=True):
        fork += question + " ASSISTANT:"
        fork += dslc.gen("answer", max_tokens=24)
    forks.join()
    s += "The same thing? ASSISTANT:" + dslc.select("same", [" yes", " no"])


def main(backend: dslc.Engine, first: object, second: object) -> tuple[list[str], str]:
    before = backend.counters()
    state = compare.run(first=first, second=second, backend=backend, temperature=0)
    used = backend.counters() - before
    for question, answer in zip(QUESTIONS, state["answer"], strict=True):
        print(f"{question} {answer.strip()}")
    print(f"The same thing?{state['same']}")
    print(f"{used.encoded_media} pictures encoded; {used.cached_tokens} of {used.prompt_tokens} prompt tokens shared")
    return state["answer"], state["same"]


if __name__ == "__main__":
    folder, *pictures = sys.argv[1:]
    with dslc.Engine(model_path=folder) as engine:
        main(engine, *pictures)
