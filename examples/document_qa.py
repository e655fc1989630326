"""Questions about a document: the document is the common beginning of all questions, computed once.

Teaches: `bind`, `cache`, `run_batch`, what the prefix cache saves.
"""

import dslc

DOCUMENT = "Mia has a red bicycle. Tom has a blue car. Ada has a green boat. Ben has nothing."
QUESTIONS = ("Who has a boat?", "What does Tom have?", "Which colour is the bicycle?")


@dslc.function
def document_qa(s, document, question):
    s += dslc.system(document)
    s += dslc.user(question)
    s += dslc.assistant(dslc.gen("answer", max_tokens=16))


if __name__ == "__main__":
    about_them = document_qa.bind(document=DOCUMENT)
    about_them.cache()
    states = about_them.run_batch([{"question": question} for question in QUESTIONS], temperature=0)
    for question, state in zip(QUESTIONS, states, strict=True):
        info = state.get_meta_info("answer")
        cached = f"{info['cached_tokens']} of {info['prompt_tokens']} prompt tokens cached"
        print(f"{question} {state['answer']}  ({cached})")
