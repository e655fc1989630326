# %% [markdown]
# # 1. A first line
#
# A dslc program is a Python function of a *state* `s`. `s += ...` appends to its text. `gen` is a hole: the model
# fills it, and the program reads what came under the name that it has.

# %%
import dslc


@dslc.function
def capital(s, country):
    s += f"Q: What is the capital of {country}?\nA:"
    s += dslc.gen("answer", max_tokens=8, stop="\n")


state = capital.run(country="France", temperature=0)
print(state["answer"])

# %% [markdown]
# `run` takes the function's own arguments, and defaults for its gens: here `temperature=0`, the most probable token
# each time. No backend was named, so the program ran on the built-in model, a very small one that knows a few
# phrasings and nothing else. For real use, make an engine of a checkpoint, once:
#
#     dslc.set_default_backend(dslc.Engine(model_path="path/to/a/checkpoint"))
#
# The state that comes back holds everything: the text, the variables, and what is known of each gen.

# %%
print(repr(state.text()))
info = state.get_meta_info("answer")
print(info["finish_reason"], info["prompt_tokens"], "prompt tokens,", info["completion_tokens"], "new ones")

# %% [markdown]
# A stop string ends the gen and is not part of the variable. Reading a name that nothing has set is an error that
# says where it was read and what there is:

# %%
try:
    state["question"]
except dslc.UndefinedVariable as error:
    print(str(error).partition(": ")[2])
