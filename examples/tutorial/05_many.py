# %% [markdown]
# # 5. Many at once
#
# `run_batch` runs a program for many rows. The programs run side by side in one thread: when one waits for the model,
# the next goes on. The engine computes their steps together, and what their prompts have in common once.

# %%
import dslc

engine = dslc.Engine()
dslc.set_default_backend(engine)

EXAMPLES = """Q: What is the capital of France?
A: Paris
Q: Which language do people speak in Italy?
A: Italian
"""


@dslc.function
def ask(s, question):
    s += EXAMPLES + "Q: "
    s += question
    s += "\nA:"
    s += dslc.gen("answer", max_tokens=8, stop="\n")


questions = ["What is the capital of Germany?", "What is the capital of Spain?", "What is the capital of Italy?"]
before = engine.counters()
states = ask.run_batch([{"question": question} for question in questions], temperature=0)
for question, state in zip(questions, states, strict=True):
    print(question, state["answer"].strip())

# %% [markdown]
# How much the common beginning saved is counted, not estimated:

# %%
used = engine.counters() - before
print(used.prompt_tokens, "prompt tokens asked for,", used.prefilled_tokens, "computed")

# %% [markdown]
# One row that fails harms no other. By default its state carries the error, with your line; `on_error="raise"` raises
# the first one.

# %%
states = ask.run_batch([{"question": "What is the capital of Spain?"}, {"question": None}], temperature=0)
for state in states:
    print(type(state.error()).__name__ if state.error() else state["answer"].strip())

# %% [markdown]
# With `generator_style=True` states come one by one as soon as they and all before them are there (`"unordered"`: as
# they end), which suits a batch of any size. `bind` fixes arguments, and `cache` keeps the common beginning in memory
# until it is asked for:

# %%
for state in ask.run_batch([{"question": "What is the capital of Peru?"}], generator_style=True, temperature=0):
    print(state["answer"].strip())
