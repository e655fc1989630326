"""Workloads in the shape of those that the field measures, with rows made by script: no download, same rows everywhere.

`workloads(num_rows)` gives a Workload for each: its program, its rows of arguments, and options of the run. The texts
are small enough for the built-in model (1,024 tokens of context); the shape - what is shared, what is constrained,
where branches and loops are - is what counts.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import dslc

ANIMALS = ("fox", "owl", "cat", "dog", "bear", "hare", "frog", "duck", "goat", "mouse")
COLOURS = ("red", "blue", "green", "white", "black", "brown", "grey", "yellow")
THINGS = ("bicycle", "boat", "car", "house", "coat", "book", "lamp", "garden", "kite", "drum")
PLACES = ("Paris", "Rome", "Madrid", "Berlin", "Oslo", "Vienna", "Lisbon", "Athens", "Dublin", "Prague")
COUNTRIES = ("France", "Italy", "Spain", "Germany", "Norway", "Austria", "Portugal", "Greece", "Ireland", "Czechia")
NAMES = ("Mia", "Tom", "Ada", "Ben", "Eva", "Leo", "Ida", "Max", "Zoe", "Jan")
FIELDS = (
    "algebra", "anatomy", "botany", "chemistry", "geography", "history", "law", "logic", "music", "physics", "poetry",
    "politics", "religion", "rhetoric", "sports", "statistics", "surveying", "trade", "zoology",
)  # fmt: skip
SUBJECTS = tuple(f"{field} {level}" for field in FIELDS for level in ("for beginners", "at school", "at college"))


@dataclass(frozen=True)
class Workload:
    """A program and the sets of arguments it is run over; `options` go to every run of it."""

    name: str
    program: Any
    rows: list[dict[str, Any]]
    options: dict[str, Any] = field(default_factory=dict)


def sentence(rng: random.Random) -> str:
    """A sentence of fact about somebody."""
    return f"{rng.choice(NAMES)} has a {rng.choice(COLOURS)} {rng.choice(THINGS)} in {rng.choice(PLACES)}."


# Few-shot multiple choice: five solved questions of the subject, then one to solve; 57 subjects.


@dslc.function
def few_shot_choice(s, subject, examples, question):
    s += f"The following are multiple choice questions about {subject}.\n\n"
    s += examples
    s += question
    s += "Answer:"
    s += dslc.select("answer", [" A", " B", " C", " D"])


def _question(rng: random.Random, answer: str = "") -> str:
    number = rng.randrange(len(COUNTRIES))
    options = rng.sample(PLACES, 4)
    lines = "".join(f"{letter}. {place}\n" for letter, place in zip("ABCD", options, strict=True))
    return f"What is the capital of {COUNTRIES[number]}?\n{lines}{answer}"


def few_shot_choice_rows(num: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for i in range(num):
        subject = SUBJECTS[i * len(SUBJECTS) // num if num >= len(SUBJECTS) else i // 2]
        shots = random.Random(subject)
        examples = "".join(_question(shots, f"Answer: {shots.choice('ABCD')}\n\n") for _ in range(5))
        rows.append({"subject": subject, "examples": examples, "question": _question(random.Random(i))})
    return rows


# HellaSwag's shape: one block of examples for all, and four long endings of each beginning scored against each other.

SHOTS = "".join(
    f"The {animal} wakes up early. It looks for the {thing}. In the end it finds it behind the {colour} door.\n"
    for animal, thing, colour in zip(ANIMALS, THINGS, COLOURS, strict=False)
)


@dslc.function
def two_level_select(s, beginning, endings):
    s += SHOTS
    s += beginning
    s += dslc.select("ending", endings)


def two_level_select_rows(num: int) -> list[dict[str, Any]]:
    rows = []
    for i in range(num):
        rng = random.Random(i)
        animal = rng.choice(ANIMALS)
        start = f" Then the {animal} goes to {rng.choice(PLACES)}"
        endings = [f"{start} and buys a {colour} {rng.choice(THINGS)}." for colour in rng.sample(COLOURS, 4)]
        rows.append({"beginning": f"The {animal} is hungry. {sentence(rng)}", "endings": endings})
    return rows


# ReAct: thought, action, observation in turn; the tool is plain Python.

FACTS = {country: f"{place} is the capital of {country}." for country, place in zip(COUNTRIES, PLACES, strict=True)}
REACT_SHOTS = (
    "Answer a question by steps of thought, action and observation.\n"
    "Question: Where is the red boat?\nThought 1: I must look for the boat.\nAction 1: Search[boat]\n"
    "Observation 1: The boat is in Oslo.\nThought 2: I know it now.\nAction 2: Finish[Oslo]\n\n"
)


def look_up(subject: str) -> str:
    return next((fact for name, fact in FACTS.items() if name in subject), "Nothing is known about it.")


@dslc.function
def react_agent(s, question):
    s += REACT_SHOTS
    s += f"Question: {question}\n"
    for step in range(1, 4):
        s += f"Thought {step}:" + dslc.gen("thought", max_tokens=16, stop="\n")
        s += f"\nAction {step}: " + dslc.select("action", ["Search", "Look up", "Finish"]) + "["
        s += dslc.gen("subject", max_tokens=8, stop=["]", "\n"]) + "]\n"
        if s["action"] == "Finish":
            return s["subject"]
        s += f"Observation {step}: {look_up(s['subject'])}\n"
    return None


def react_agent_rows(num: int) -> list[dict[str, Any]]:
    return [
        {"question": f"What is the capital of {COUNTRIES[i % 10]} where {NAMES[i // 10]} lives?"} for i in range(num)
    ]


# Generative agents: many small questions about one persona, each with a bounded answer.


@dslc.function
def generative_agent(s, persona, events):
    s += f"{persona}\nWhat happened today:\n{events}\n"
    branches = s.fork(3)
    branches[0] += "On a scale of 1 to 10, how poignant was it? Answer:" + dslc.gen("score", regex=" ([1-9]|10)")
    branches[1] += "Should they act now? Answer:" + dslc.select("act", [" yes", " no"])
    branches[2] += "The plan for the next hour:" + dslc.gen("plan", max_tokens=16, stop="\n")
    branches.join()
    s += "So the next action is:" + dslc.gen("action", max_tokens=12, stop=["\n", "."])


def generative_agent_rows(num: int) -> list[dict[str, Any]]:
    rows = []
    for i in range(num):
        rng = random.Random(i)
        persona = (
            f"{NAMES[i % 10]} lives in {PLACES[i % 10]} with a {ANIMALS[i % 10]} and likes every {THINGS[i % 10]}."
        )
        rows.append({"persona": persona, "events": "\n".join(sentence(rng) for _ in range(4))})
    return rows


# Tree of thought: plans, ways, and a score for each.


@dslc.function
def tree_of_thought(s, question):
    s += f"Solve the question step by step.\nQuestion: {question}\n"
    plans = s.fork(2)
    for plan in plans:
        plan += "Plan:" + dslc.gen("plan", max_tokens=12, stop="\n", temperature=0.8) + "\n"
        ways = plan.fork(2)
        for way in ways:
            way += "Answer:" + dslc.gen("answer", max_tokens=10, stop="\n", temperature=0.8) + "\n"
            way += "Is it right? Score:" + dslc.select("score", [" 1", " 2", " 3", " 4", " 5"])
        ways.join()
    plans.join()
    s += "The best is" + dslc.gen("best", max_tokens=8, stop="\n")


def question_rows(num: int) -> list[dict[str, Any]]:
    rows = []
    for i in range(num):
        rng = random.Random(i)
        question = (
            f"{NAMES[i % 10]} has {rng.randint(2, 9)} {ANIMALS[i % 10]}s and gets {rng.randint(2, 9)} more. How many?"
        )
        rows.append({"question": question})
    return rows


# Skeleton of thought: points first, then each point worked out beside the others, at full length: a small model would
# end its paragraphs after a word or two, and what the branches are for would not be measured.


@dslc.function
def skeleton_of_thought(s, topic):
    s += f"Three short tips about {topic}.\n1."
    s += dslc.gen("first", max_tokens=8, stop=["\n", "."]) + "\n2."
    s += dslc.gen("second", max_tokens=8, stop=["\n", "."]) + "\n3."
    s += dslc.gen("third", max_tokens=8, stop=["\n", "."]) + "\n"
    branches = s.fork(3)
    for i, branch in enumerate(branches):
        branch += f"Now tip {i + 1} as a paragraph:" + dslc.gen("detail", max_tokens=24, ignore_eos=True)
    branches.join()
    s += "In short:" + dslc.gen("summary", max_tokens=12, stop="\n")


def topic_rows(num: int) -> list[dict[str, Any]]:
    return [{"topic": f"a {COLOURS[i % 8]} {THINGS[i // 8 % 10]} for {NAMES[i % 10]}"} for i in range(num)]


# Branch, solve, merge: an essay judged in several dimensions, if it is on the topic at all.

DIMENSIONS = ("Clarity", "Originality", "Evidence")


@dslc.function
def judge(s, essay):
    s += dslc.system("You judge short essays.")
    s += dslc.user(f"The essay: {essay}\nIs it about an animal?")
    s += dslc.assistant(dslc.select("related", ["yes", "no"]))
    branches = s.fork(len(DIMENSIONS))
    for dimension, branch in zip(DIMENSIONS, branches, strict=True):
        branch += dslc.user(f"Judge its {dimension.lower()}. First a sentence, then a grade.")
        branch += dslc.assistant(
            dslc.gen("judgement", max_tokens=16, stop=".") + ". Grade: " + dslc.gen("grade", regex="[A-D][+-]?")
        )
    branches.join()
    s += dslc.user("A summary as JSON.")
    s += dslc.assistant(
        dslc.gen("summary", regex=r'\{"summary": "[a-z ]{4,24}", "grade": "[ABCD][+-]?"\}', max_tokens=48)
    )


def essay_rows(num: int) -> list[dict[str, Any]]:
    return [{"essay": " ".join(sentence(rng) for _ in range(5))} for rng in map(random.Random, range(num))]


# JSON extraction: a character as five fields of a bounded schema.

CHARACTER = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12, "pattern": "^[A-Z][a-z]{1,10}$"},
        "house": {"enum": ["Gryffindor", "Slytherin", "Ravenclaw", "Hufflepuff"]},
        "blood status": {"enum": ["Pure-blood", "Half-blood", "Muggle-born"]},
        "occupation": {"enum": ["student", "teacher", "auror", "minister"]},
        "alive": {"type": "boolean"},
    },
    "required": ["name", "house", "blood status", "occupation", "alive"],
    "additionalProperties": False,
}


@dslc.function
def json_extraction(s, text):
    s += f"{text}\nThe same as JSON: "
    s += dslc.gen("character", json_schema=CHARACTER, max_tokens=96)


FREE = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 40}, "story": {"type": "string", "maxLength": 160}},
    "required": ["name", "story"],
    "additionalProperties": False,
}


@dslc.function
def json_free(s, text):
    """Two strings of any text, where little is forced: printed beside the other, in no mean."""
    s += f"{text}\nThe same as JSON: "
    s += dslc.gen("character", json_schema=FREE, max_tokens=96)


def text_rows(num: int) -> list[dict[str, Any]]:
    return [{"text": f"{NAMES[i % 10]} the {ANIMALS[i // 10 % 10]} is a student. {sentence(random.Random(i))}"}
            for i in range(num)]  # fmt: skip


# Chats of four turns, with short and with long answers.


@dslc.function
def chat_short(s, first, second, third, fourth):
    for i, question in enumerate((first, second, third, fourth)):
        s += dslc.user(question)
        s += dslc.assistant(dslc.gen(f"answer_{i}", max_tokens=8))


@dslc.function
def chat_long(s, first, second, third, fourth):
    for i, question in enumerate((first, second, third, fourth)):
        s += dslc.user(question)
        s += dslc.assistant(dslc.gen(f"answer_{i}", max_tokens=48, ignore_eos=True))


def chat_rows(num: int) -> list[dict[str, Any]]:
    rows = []
    for rng in map(random.Random, range(num)):
        rows.append(
            {name: f"{sentence(rng)} What do you think of it?" for name in ("first", "second", "third", "fourth")}
        )
    return rows


# Questions about documents: each document is asked several questions.


@dslc.function
def document_qa(s, document, question):
    s += dslc.system(f"Answer from the document.\n{document}")
    s += dslc.user(question)
    s += dslc.assistant(dslc.gen("answer", max_tokens=12))


def document_rows(num: int) -> list[dict[str, Any]]:
    rows = []
    for i in range(num):
        rng = random.Random(f"document {i % 8}")  # eight documents, asked in turn: not sorted
        document = " ".join(sentence(rng) for _ in range(16))
        rows.append({"document": document, "question": f"Who has the {THINGS[i % 10]} of {NAMES[i // 10 % 10]}?"})
    return rows


# Self-consistency: several samples of one prompt, and a vote in Python.


@dslc.function
def self_consistency(s, question):
    s += f"Question: {question}\nReason step by step.\nAnswer:"
    s += dslc.gen("answers", n=5, max_tokens=16, temperature=0.7, stop="\n")


# A RAG pipeline: read the passages that were found, whose order does not matter, answer, and check the answer.

PASSAGES = tuple(" ".join(sentence(random.Random(100 + i)) for _ in range(3)) for i in range(12))
RAG_RULES = "You answer questions from passages. You say so if the passages do not hold the answer."


@dslc.function
def rag_pipeline(s, question, passages):
    s += dslc.system(RAG_RULES)
    s += dslc.user("The passages:\n" + dslc.unordered(passages))
    s += dslc.user(question)
    s += dslc.assistant(dslc.gen("answer", max_tokens=16))
    s += dslc.user("Do the passages support this?")
    s += dslc.assistant(dslc.select("supported", ["yes", "no", "in part"]))


def rag_rows(num: int) -> list[dict[str, Any]]:
    rows = []
    for i in range(num):
        rng = random.Random(i)
        found = rng.sample(PASSAGES[: 4 + i % 4], 3)
        rows.append({"question": f"Who has the {rng.choice(THINGS)}?", "passages": found})
    return rows


_ALL: tuple[tuple[str, Any, Callable[[int], list[dict[str, Any]]]], ...] = (
    ("few-shot choice", few_shot_choice, few_shot_choice_rows),
    ("two-level select", two_level_select, two_level_select_rows),
    ("ReAct agent", react_agent, react_agent_rows),
    ("generative agents", generative_agent, generative_agent_rows),
    ("tree of thought", tree_of_thought, question_rows),
    ("skeleton of thought", skeleton_of_thought, topic_rows),
    ("branch-solve-merge judge", judge, essay_rows),
    ("JSON extraction", json_extraction, text_rows),
    ("chat, short answers", chat_short, chat_rows),
    ("chat, long answers", chat_long, chat_rows),
    ("document QA", document_qa, document_rows),
    ("self-consistency", self_consistency, question_rows),
    ("RAG pipeline", rag_pipeline, rag_rows),
)


def workloads(num_rows: int = 64) -> list[Workload]:
    """All of them, with so many rows each."""
    return [Workload(name, program, rows(num_rows)) for name, program, rows in _ALL]
