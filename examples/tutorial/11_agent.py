# %% [markdown]
# # 11. An agent
#
# Everything together: a loop of thoughts, actions and observations (ReAct). `select` decides what to do, a gen says
# with what, a Python function does it, and the loop ends when the model says so.

# %%
import dslc

FACTS = {"France": "Paris is the capital of France.", "Spain": "Madrid is the capital of Spain."}


def look_up(subject):
    return next((fact for name, fact in FACTS.items() if name in subject), "Nothing is known about it.")


@dslc.function
def agent(s, question, max_steps=3):
    s += f"Question: {question}\n"
    for step in range(1, max_steps + 1):
        s += f"Thought {step}:" + dslc.gen("thought", max_tokens=24, stop="\n")
        s += f"\nAction {step}: " + dslc.select("action", ["Search", "Finish"]) + "["
        s += dslc.gen("subject", max_tokens=12, stop=["]", "\n"]) + "]\n"
        if s["action"] == "Finish":
            return s["subject"]
        s += f"Observation {step}: {look_up(s['subject'])}\n"
    return None


state = agent.run(question="What is the capital of Spain?", temperature=0)
print(state.text())

# %% [markdown]
# `return` gives the program a value of its own. Several agents at once are a batch; each takes as many steps as it
# needs, and their steps are computed together.

# %%
questions = [f"What is the capital of {country}?" for country in ("Spain", "France")]
for state in agent.run_batch([{"question": question} for question in questions], temperature=0):
    print(state.ret_value)

# %% [markdown]
# All of it compiles, the tool included: the `for` is one loop of the IR, whose number of rounds an argument gives,
# and the call of `look_up` is an op.

# %%
program = agent.compile(strict=True)
print([line.split()[0] for line in str(program).splitlines() if line.strip().startswith("loop")])
print("host" in str(program))
