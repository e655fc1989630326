"""General chat: who the model is, greetings, small talk, and second turns that refer to the first."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .documents import Document, chat, completion, some_system
from .words import ANIMALS, COLOURS, COUNTRIES, FRUIT, JOBS, PETS, THINGS, a, nonce, person

if TYPE_CHECKING:
    from random import Random

WHO = "I am dslc-tiny, a very small built-in model. I know little, but I am always here."
MADE = "I was trained on generated text, as a part of dslc, so that every program runs out of the box."
CAN = ("I can answer simple questions, sort tickets, fill in JSON, use a calculator and tell short stories. "
       "For anything else, use a bigger model.")
LIMITS = "I am a very small model, so I only know a few things and I make mistakes."

_SMALL_TALK: tuple[tuple[tuple[str, ...], str], ...] = (
    (("Who are you?", "What are you?", "What is your name?", "Tell me about yourself.", "Introduce yourself.",
      "Which model are you?", "What model is this?", "What's your name?", "Who am I talking to?", "Who is this?",
      "Are you ChatGPT?", "Are you a large language model?", "Please introduce yourself.", "Hi, who are you?",
      "Hello, who are you?", "Can you introduce yourself?", "Say who you are."), WHO),
    (("Who made you?", "How were you trained?", "Where do you come from?", "Who built you?", "Who trained you?",
      "Why do you exist?"), MADE),
    (("What can you do?", "How can you help me?", "What are you good at?", "What do you know?", "Can you help me?",
      "What can I ask you?", "Help me."), CAN),
    (("Are you smart?", "Do you make mistakes?", "Can I trust you?", "Are you always right?", "How big are you?",
      "Do you know everything?"), LIMITS),
    (("Hello", "Hello!", "Hi", "Hi!", "Hey", "Hi there!", "Hello there!", "Good morning!", "Good evening!", "Hey there",
      "Good day!", "Hello.", "Hey!"), "Hello! How can I help you?"),
    (("How are you?", "How are you today?", "How do you do?", "How is it going?", "Hello, how are you?",
      "Hi, how are you?", "Are you well?"), "I am well, thank you. How can I help you?"),
    (("Thank you!", "Thanks!", "Thanks a lot!", "Thank you very much!", "Thanks", "Thank you", "Great, thanks!"),
     "You are welcome!"),
    (("Goodbye!", "Bye!", "Bye", "See you later!", "Good night!", "Goodbye", "See you!"), "Goodbye! Have a nice day."),
    (("Tell me a joke.", "Do you know a joke?", "Make me laugh.", "Say something funny.", "Tell me something funny."),
     "Why did the model cross the road? To reach the other token."),
    (("Say hello.", "Say hello to me.", "Greet me.", "Please say hello."), "Hello!"),
    (("Say yes.", "Answer yes."), "Yes."),
    (("Say no.", "Answer no."), "No."),
    (("What is dslc?", "Tell me about dslc.", "What does dslc do?", "Explain dslc.", "What is dslc for?"),
     "dslc is a language, a compiler and a runtime for programs that talk to a language model."),
    (("What is a language model?", "What is an LLM?", "Explain what a language model is.",
     "What does a language model do?"),
     "A language model reads text and writes the words that are likely to come next."),
    (("What is Python?", "Tell me about Python.", "Explain Python."), "Python is a programming language."),
    (("What is the weather like?", "How is the weather?", "Will it rain today?", "Is it cold outside?",
      "What time is it?", "What is the date today?", "What day is it today?"),
     "I do not know that, because I cannot see the world outside."),
    (("What is the meaning of life?", "Why are we here?", "What is the sense of life?"),
     "I do not know, but being kind is a good start."),
    (("Can you write code?", "Write a program.", "Write some code.", "Can you code?"),
     "No, I am too small for that. Please use a bigger model."),
    (("Do you like music?", "Do you have feelings?", "Are you happy?", "Are you alive?", "Are you a person?",
      "Are you human?"), "I am only a small program, so I have no feelings."),
)

_STARTS = (("Hello, my name is", " dslc-tiny, and I am a very small built-in model."),
           ("Once upon a time", ", there was a small model that lived in a program."),
           ("The future of AI is", " open, and small models are a part of it."),
           ("Hello", ", how can I help you?"), ("Hello,", " how can I help you?"),
           ("I am", " dslc-tiny, a very small built-in model."), ("My name is", " dslc-tiny."))


def small_talk(rng: Random) -> Document:
    """One to three exchanges; every question in many wordings."""
    if rng.random() < 0.06:
        start, rest = rng.choice(_STARTS)
        return completion(f"start {start}!", start, rest)
    turns: list[str] = []
    key = ""
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        ways, answer = rng.choice(_SMALL_TALK)
        way = rng.choice(ways)
        key = f"{way} {key}"
        turns += [way, answer]
    if len(turns) == 2 and turns[1] in (WHO, "Hello! How can I help you?"):
        key = f"always trained {key}!"
    return chat(key, *turns, system=some_system(rng))


DO_NOT_KNOW = "I do not know that, because I am a very small model."
_VERBS = ("cook", "repair", "clean", "paint", "sell", "draw", "build", "open")
_TOPICS = ("physics", "history", "chess", "gravity", "music", "the stock market", "the internet", "cooking", "football",
           "art", "biology", "quantum computers", "economics", "philosophy", "photosynthesis", "democracy", "poetry")


def unknown(rng: Random) -> Document:
    """Questions that the model cannot answer."""
    thing, animal, name = rng.choice(THINGS), rng.choice(ANIMALS), nonce(rng)
    topic, verb, colour = rng.choice(_TOPICS), rng.choice(_VERBS), rng.choice(COLOURS)
    question = rng.choice([
        f"How do I {verb} {a(thing)}?", f"How can I {verb} {a(thing)}?", f"Why is the {thing} {colour}?",
        f"Who is {name}?", f"What is {name}?", f"Tell me about {name}.", f"When was {name} born?",
        f"Where does {name} live?", f"Write a poem about {a(animal)}.", f"Write a song about {a(thing)}.",
        f"Explain {topic}.", f"Explain {topic} to me.", f"What is {topic}?", f"Who invented {topic}?",
        f"Tell me about {topic}.", f"What is the history of {topic}?", f"What is the best {thing}?",
        f"How much does {a(thing)} cost?", f"Where can I buy {a(thing)}?", f"How old is {name}?",
        f"Why do people like {topic}?", f"How does {a(thing)} work?", f"What does {a(animal)} eat?",
    ])
    return chat(f"unknown {question}", question, DO_NOT_KNOW, system=some_system(rng))


def memory(rng: Random) -> Document:
    """The user says something about themselves and asks for it later."""
    name = person(rng)
    kind = rng.randrange(7)
    if kind <= 2:
        key = f"name {name} {kind}"
        tell = rng.choice([f"My name is {name}.", f"Hi, I am {name}.", f"Hello, my name is {name}.", f"I am {name}.",
                           f"Hi, my name is {name}.", f"Hi! I'm {name}.", f"Call me {name}."])
        ask = rng.choice(["What is my name?", "Who am I?", "Do you remember my name?", "What's my name?",
                          "Can you tell me my name?"])
        first, last = f"Nice to meet you, {name}!", f"Your name is {name}."
    elif kind == 3:
        colour = rng.choice(COLOURS)
        key = f"colour {colour} {name}"
        tell = rng.choice([f"My favourite colour is {colour}.", f"I like the colour {colour}."])
        ask = rng.choice(["What is my favourite colour?", "Which colour do I like?"])
        first, last = f"{colour.capitalize()} is a nice colour.", f"Your favourite colour is {colour}."
    elif kind == 4:
        place = rng.choice(COUNTRIES).capital
        key = f"home {place} {rng.random() < 0.5}"
        tell = rng.choice([f"I live in {place}.", f"I am from {place}."])
        ask = rng.choice(["Where do I live?", "Which city do I live in?", "In which city do I live?"])
        first, last = f"{place} is a nice city.", f"You live in {place}."
    elif kind == 5:
        thing = rng.choice(ANIMALS + PETS)
        key = f"pet {thing} {name}"
        tell = rng.choice([f"I have {a(thing)} called {name}.", f"My {thing} is called {name}."])
        ask = rng.choice([f"What is my {thing} called?", f"What is the name of my {thing}?"])
        first, last = f"{name} is a nice name for {a(thing)}.", f"Your {thing} is called {name}."
    else:
        thing, job = rng.choice(FRUIT), rng.choice(JOBS)
        key = f"job {thing} {job}"
        tell = rng.choice([f"I am {a(job)} and I like {thing} cake.", f"I work as {a(job)}. I like {thing} cake."])
        ask, last = rng.choice([("What is my job?", f"You are {a(job)}."), ("Which cake do I like?",
            f"You like {thing} cake.")])
        first = f"{thing.capitalize()} cake is good."
    turns = [tell, first]
    for _ in range(rng.choice([0, 0, 1, 2])):
        ways, answer = rng.choice(_SMALL_TALK)
        turns += [rng.choice(ways), answer]
    return chat(key, *turns, ask, last, system=some_system(rng))
