# %% [markdown]
# # 9. When something goes wrong
#
# Errors come out where the program, or its `run`, is: with the line of your program, and what to do. Some mistakes
# need no run at all: `dslc check` finds them in a file, without a model.

# %%
import dslc


@dslc.function
def report(s, ticket):
    s += dslc.user(ticket)
    s += dslc.assistant(dslc.gen("report", regex="[a-z ]{50,200}", max_tokens=4))


state = report.run(ticket="The app crashes on start.", temperature=0)
info = state.get_meta_info("report")
print(info["finish_reason"]["type"], info["is_complete"])

# %% [markdown]
# That gen was cut by its limit of tokens before its regex was met, and says so. `finish_valid=True` takes the
# shortest way to an end in time; a typed gen whose text is not complete refuses to be read.
#
# A run can be bounded as a whole, in seconds (`timeout=`) and in generated tokens:


# %%
@dslc.function
def talk(s, text):
    for _ in range(10):
        s += dslc.user(text) + dslc.assistant(dslc.gen("answer", max_tokens=16))


try:
    talk.run(text="Hello!", token_budget=20)
except dslc.DslcError as error:
    print(str(error).partition(": ")[2])

# %% [markdown]
# An exception of your own in the body comes out as it is. If the program has branches, the others are ended: nothing
# goes on for a result that nobody can read.


# %%
@dslc.function
def divide(s, a, b):
    s += f"{a} divided by {b} is {a / b}."


try:
    divide.run(a=1, b=0)
except ZeroDivisionError as error:
    print(error)
