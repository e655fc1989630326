"""Skeleton of thought: a list of points first, each point worked out beside the others.

Teaches: a fork whose size comes from generated text, building a text from branches.
"""

import dslc


@dslc.function
def skeleton_of_thought(s, question, most=4):
    s += f"Question: {question}\nPoints, one a line:\n"
    s += dslc.gen("skeleton", max_tokens=40, stop="\n\n")
    points = [line.strip("-. ") for line in s["skeleton"].splitlines() if line.strip("-. ")][:most] or ["the answer"]
    branches = s.fork(len(points))
    for point, branch in zip(points, branches, strict=True):
        branch += f"\nMore about {point}:" + dslc.gen("detail", max_tokens=24, stop="\n")
    branches.join()
    for point, detail in zip(points, s["detail"], strict=True):
        s += f"\n{point}:{detail}"
    return len(points)


if __name__ == "__main__":
    print(skeleton_of_thought.run(question="How do I save money?", temperature=0).text())
