# %% [markdown]
# # 8. Streams and event loops
#
# With `stream=True`, `run` returns at once, and the state is read while the program runs. Nothing is lost however
# late it is read; leaving the loop early ends the generation.

# %%
import asyncio

import dslc


@dslc.function
def chat(s, text):
    s += dslc.user(text)
    s += dslc.assistant(dslc.gen("answer", max_tokens=24))


state = chat.run(text="My name is Emma.", stream=True, temperature=0)
pieces = list(state.text_iter("answer"))
print("".join(pieces))
print(state["answer"] == "".join(pieces))

# %% [markdown]
# Without a name, `text_iter()` streams all of the text, prompts included. In an event loop, `arun` runs a program
# without blocking it. Programs may be async functions themselves, too: then values are awaited with `s.get`.


# %%
@dslc.function
async def two_turns(s, name):
    s += dslc.user(f"My name is {name}.") + dslc.assistant(dslc.gen("greeting", max_tokens=24))
    greeting = await s.get("greeting")
    s += dslc.user("What is my name?") + dslc.assistant(dslc.gen("answer", max_tokens=24))
    return greeting, await s.get("answer")


async def main():
    states = await asyncio.gather(*(two_turns.arun(name=name, temperature=0) for name in ("Emma", "Noah")))
    for state in states:
        print(state.ret_value)


asyncio.run(main())

# %% [markdown]
# Both programs ran in the event loop's thread, on one engine, in common batches.
