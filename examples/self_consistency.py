"""Self-consistency: many sampled answers to one prompt, the most frequent one wins.

Teaches: `gen(n=)`, one prefill for all samples, `seed`.
"""

from collections import Counter

import dslc


@dslc.function
def self_consistency(s, question, samples=8):
    s += dslc.user(question)
    s += dslc.assistant(dslc.gen("answers", n=samples, max_tokens=12, temperature=0.8))
    votes = Counter(answer.strip() for answer in s["answers"])
    return votes.most_common(1)[0]


if __name__ == "__main__":
    state = self_consistency.run(question="How much is 5 + 3?", seed=1)
    print(state["answers"])
    print(state.ret_value)
