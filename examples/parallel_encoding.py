"""Several documents read side by side: each branch takes one, and their texts go on together.

Teaches: `fork` over data, `join("concate_and_append")`.
"""

import dslc

DOCUMENTS = ("Mia has a red bicycle.", "Tom has a blue car.", "Ada has a green boat.")


@dslc.function
def parallel_encoding(s, documents, question):
    s += "Read the notes and answer.\n"
    branches = s.fork(len(documents))
    branches += lambda i: f"Note {i + 1}: {documents[i]}\n"
    branches.join("concate_and_append")
    s += f"Question: {question}\nAnswer:"
    s += dslc.gen("answer", max_tokens=16, stop="\n")


if __name__ == "__main__":
    print(parallel_encoding.run(documents=DOCUMENTS, question="Who has a boat?", temperature=0).text())
