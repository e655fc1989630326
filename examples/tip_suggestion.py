"""Parallel decoding: a short list first, then its parts at the same time.

Teaches: `fork`, branches that run together, reading a branch's variable, joining the results in the parent.
"""

import dslc

TIPS = ("Balanced Diet", "Regular Exercise")


@dslc.function
def tip_suggestion(s, topic):
    s += f"Here are two tips for {topic}: 1. {TIPS[0]}. 2. {TIPS[1]}.\n\n"
    branches = s.fork(2)
    for i, branch in enumerate(branches):
        branch += f"Now, expand tip {i + 1} into a paragraph:\n"
        branch += dslc.gen("paragraph", max_tokens=64, stop="\n", temperature=0)
    s += "Tip 1:" + branches[0]["paragraph"] + "\n"
    s += "Tip 2:" + branches[1]["paragraph"] + "\n"
    s += "In summary" + dslc.gen("summary", max_tokens=24, stop="\n", temperature=0)


if __name__ == "__main__":
    print(tip_suggestion.run(topic="staying healthy").text())
