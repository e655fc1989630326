"""One-object programs end to end: `taskset -c 0 python benchmarks/constraint_programs.py [--model 5m-text]`.

A prompt, and a JSON object of five fields under its schema, with a random model of the given size: the first program
after the engine is loaded, one at a time, and 32 at once. What the programs write is checked against the schema.
"""

import argparse
import json
import statistics
import time

import jsonschema
import torch
from random_checkpoint import model_of

import dslc
from dslc.runtime.engine import Engine

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "city": {"enum": ["Athens", "Berlin", "Cairo", "Dakar"]},
        "email": {"type": "string", "pattern": "^[a-z]{1,8}@[a-z]{1,5}\\.org$"},
        "active": {"type": "boolean"},
    },
    "required": ["name", "age", "city", "email", "active"],
    "additionalProperties": False,
}


@dslc.function
def person(s, who):
    s += f"Describe {who} as JSON.\n"
    s += dslc.gen("json", json_schema=PERSON, max_tokens=120)


def milliseconds(work):
    started = time.perf_counter()
    found = work()
    return (time.perf_counter() - started) * 1e3, found


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="5m-text", help="a folder, or a shape of random_checkpoint.py")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--jump-forward", choices=("true", "step", "false"), default="true")
    options = parser.parse_args()
    jump = {"true": True, "step": "step", "false": False}[options.jump_forward]
    torch.set_num_threads(1)
    loading, engine = milliseconds(lambda: Engine(model_path=model_of(options.model), device="cpu", dtype="float32"))
    with engine:
        given = {"backend": engine, "temperature": 1.0, "jump_forward": jump}
        first, state = milliseconds(lambda: person.run(who="Ada", **given))
        texts = [state["json"]]
        single, before = [], engine.counters()
        for number in range(options.repeats):
            taken, state = milliseconds(lambda n=number: person.run(who=f"person {n}", **given))
            single.append(taken)
            texts.append(state["json"])
        used = engine.counters() - before
        batches = []
        for number in range(max(options.repeats // 3, 2)):
            names = [{"who": f"person {number} {i}"} for i in range(32)]
            taken, states = milliseconds(lambda names=names: person.run_batch(names, **given))
            batches.append(32e3 / taken)
            texts += [state["json"] for state in states]
    for text in texts:
        jsonschema.validate(json.loads(text), PERSON)
    tokens, forced = used.generated_tokens / options.repeats, used.forced_tokens / options.repeats
    print(f"{options.model} model loaded in {loading:.0f} ms; {len(texts)} programs, all valid; one has {tokens:.0f} "
          f"tokens, {forced:.0f} of them forced, in {used.forwards / options.repeats:.1f} forwards")  # fmt: skip
    print(f"first program after load: {first:.1f} ms")
    print(f"one program: {statistics.median(single):.1f} ms (median of {len(single)}; least {min(single):.1f})")
    print(
        f"32 programs: {statistics.median(batches):.0f} programs/s (median of {len(batches)}; best {max(batches):.0f})"
    )


if __name__ == "__main__":
    main()
