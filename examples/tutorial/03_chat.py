# %% [markdown]
# # 3. A chat
#
# `system`, `user` and `assistant` append turns. The text around a turn comes from the model's own chat template; what
# is inside a turn can be text, gens and selects in any mixture.

# %%
import dslc


@dslc.function
def chat(s, name):
    s += dslc.user(f"My name is {name}.")
    s += dslc.assistant(dslc.gen("greeting", max_tokens=24))
    s += dslc.user("What is my name?")
    s += dslc.assistant(dslc.gen("answer", max_tokens=24))


state = chat.run(name="Emma", temperature=0)
for message in state.messages():
    print(f"{message['role']}: {message['content']}")

# %% [markdown]
# The text shows what the model saw, the template's own marks included. Text that you append with `s +=` never opens a
# turn or ends one, whatever is written in it: special tokens are parsed in template text only.

# %%
print(state.text())

# %% [markdown]
# The second turn's prompt begins with all of the first turn. It was in the cache already, so only the new part of it
# was computed:

# %%
info = state.get_meta_info("answer")
print(info["cached_tokens"], "of", info["prompt_tokens"], "prompt tokens came from the cache")

# %% [markdown]
# A turn can be a block, too, when it takes several statements:


# %%
@dslc.function
def block(s, name):
    with s.user():
        s += "Hi! "
        s += f"I'm {name}."
    with s.assistant():
        s += dslc.gen("greeting", max_tokens=24)


print(block.run(name="Noah", temperature=0)["greeting"])
