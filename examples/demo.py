"""The demo: a support desk as one program, compiled, and run over a batch on the built-in model.

Roles, a `select` that decides a branch, a JSON Schema and a regex that generations must match, a fork of three, and
`run_batch` over 32 tickets. At the end: what the compiler and the cache saved.
"""

import json
import time
from pathlib import Path

import dslc

REPORT = {
    "type": "object",
    "properties": {
        "summary": {"type": "string", "maxLength": 60},
        "component": {"enum": ["app", "website", "payments", "login", "search"]},
        "severity": {"enum": ["low", "medium", "high"]},
    },
    "required": ["summary", "component", "severity"],
    "additionalProperties": False,
}


@dslc.function
def triage(s, ticket):
    s += dslc.system("You sort support tickets.")
    s += dslc.user(ticket)
    s += dslc.assistant(dslc.select("label", ["bug", "billing", "other"]))
    if s["label"] == "bug":
        s += dslc.user("Summarise it as JSON.")
        s += dslc.assistant(dslc.gen("report", max_tokens=64, json_schema=REPORT))
    elif s["label"] == "billing":
        s += dslc.user("Which amount is it about?")
        s += dslc.assistant(dslc.gen("amount", max_tokens=12, regex=r"\$[0-9]{1,4}\.[0-9]{2}"))
    else:
        s += dslc.user("Answer the customer in one sentence.")
        s += dslc.assistant(dslc.gen("answer", max_tokens=32))
    team, urgency, line = s.fork(3)
    team += dslc.user("Which team should handle it?") + dslc.assistant(dslc.gen("team", max_tokens=6))
    urgency += dslc.user("How urgent is it, from 1 to 5?") + dslc.assistant(dslc.gen("urgency", regex="[1-5]"))
    line += dslc.user("Write one line to the customer.") + dslc.assistant(dslc.gen("line", max_tokens=32))
    s["team"], s["urgency"], s["line"] = team["team"], urgency["urgency"], line["line"]


def main():
    tickets = json.loads((Path(__file__).parent / "data" / "tickets.json").read_text("utf-8"))
    with dslc.Engine() as engine:
        dslc.set_default_backend(engine)

        print("One ticket, as the model saw it:\n")
        state = triage.run(ticket=tickets[0]["ticket"], temperature=0)
        print(state.text())

        before, started = engine.counters(), time.perf_counter()
        states = triage.run_batch([{"ticket": t["ticket"]} for t in tickets], temperature=0, progress_bar=True)
        seconds, used = time.perf_counter() - started, engine.counters() - before

    right = 0
    print(f"\n{'label':8} {'team':9} {'urgency':8} result")
    for ticket, state in zip(tickets, states, strict=True):
        found = next(state[name] for name in ("report", "amount", "answer") if name in state)
        right += state["label"] == ticket["label"]
        print(f"{state['label']:8} {state['team']:9} {state['urgency']:8} {found}")

    print(f"\n{len(states)} tickets in {seconds:.1f} s; {right} labels as a person gave them.")
    print(f"prompt tokens   {used.prompt_tokens} asked for, {used.prefilled_tokens} computed")
    print(f"choice tokens   {used.scored_tokens} scored for `select`")
    print(f"new tokens      {used.generated_tokens} generated, of them {used.forced_tokens} forced")
    print(f"forwards        {used.forwards}, {used.rows / max(used.forwards, 1):.1f} token rows each")


if __name__ == "__main__":
    main()
