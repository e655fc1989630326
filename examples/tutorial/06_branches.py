# %% [markdown]
# # 6. Branches
#
# `fork` makes copies of the state that go on side by side. They share what came before: its keys and values are
# stored once. Reading a branch's variable waits for it.

# %%
import dslc


@dslc.function
def triage(s, ticket):
    s += dslc.system("You sort support tickets.")
    s += dslc.user(ticket)
    s += dslc.assistant(dslc.select("label", ["bug", "billing", "other"]))
    team, urgency = s.fork(2)
    team += dslc.user("Which team should handle it?") + dslc.assistant(dslc.gen("team", max_tokens=6))
    urgency += dslc.user("How urgent is it, from 1 to 5?") + dslc.assistant(dslc.gen("urgency", regex="[1-5]"))
    s["team"], s["urgency"] = team["team"], urgency["urgency"]


state = triage.run(ticket="The app crashes on start.", temperature=0)
print(state["label"], state["team"], state["urgency"])

# %% [markdown]
# A group of branches can be appended to all at once, and `join` brings their variables back as lists:


# %%
@dslc.function
def tips(s, topic):
    s += f"Here are two tips for {topic}: 1. Balanced Diet. 2. Regular Exercise.\n\n"
    branches = s.fork(2)
    branches += lambda i: f"Now, expand tip {i + 1} into a paragraph:\n"
    branches += dslc.gen("tip", max_tokens=48, stop="\n")
    branches.join()


state = tips.run(topic="staying healthy", temperature=0)
for text in state["tip"]:
    print(text.split()[0], "...")

# %% [markdown]
# Sampling several answers to the same prompt needs no fork: `n=` samples them from one prefill, each from its own
# stream of random numbers. The seed makes them the same again.


# %%
@dslc.function
def votes(s, question):
    s += dslc.user(question)
    s += dslc.assistant(dslc.gen("answers", n=4, max_tokens=24, temperature=1.0))


first = votes.run(question="What is the capital of Spain?", seed=1)["answers"]
again = votes.run(question="What is the capital of Spain?", seed=1)["answers"]
print(len(first), first == again)
