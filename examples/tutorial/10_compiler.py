# %% [markdown]
# # 10. What the compiler sees
#
# A function is traced, not run, into a program in an intermediate representation (IR): a few kinds of ops, each with
# the line that it came from.

# %%
import dslc


@dslc.function
def triage(s, ticket):
    s += dslc.system("You sort support tickets.")
    s += dslc.user(ticket)
    s += dslc.assistant(dslc.select("label", ["bug", "billing", "other"]))
    if s["label"] == "bug":
        s += dslc.user("Which team should handle it?") + dslc.assistant(dslc.gen("team", max_tokens=6))


print(triage.compile(strict=True))

# %% [markdown]
# Passes then rewrite it: the chat template is written out, constants are tokenised, choices become one trie,
# constraints become automata. What is left to do for each run is the *plan*. The command line shows all of it:
#
# ```sh
# dslc compile triage.py                    # the program
# dslc compile triage.py --print-after-all  # after each pass
# dslc compile triage.py --explain          # for each gen: what is shared, forced, cached, and why not
# dslc run triage.py --arg ticket="The app crashes on start" --trace   # what was measured
# ```
#
# `docs/compiler.md` walks through all passes with this program. Compiled or not, a program gives the same result; the
# compiled one asks for less.

# %%
engine = dslc.Engine(deterministic=True)
one = triage.run(ticket="The app crashes on start.", temperature=0, backend=engine)
other = triage.run(ticket="The app crashes on start.", temperature=0, backend=engine, compiled=False)
print(one.text() == other.text())
