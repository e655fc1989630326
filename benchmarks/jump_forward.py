"""Forced text on the built-in model: `python benchmarks/jump_forward.py [share|draws|steps] [--prompts 40]`.

share: how many tokens of a key-heavy object of five fields are forced, against the causal bound (tokens whose bytes
were determined before them, and that no longer token could replace); forwards, rows and seconds by mode. draws: how
often the greedy text without jumping (masks only, jump_forward=False) differs from that with it, and the log-prob of
both under the model. steps: forwards per output token of one program that fills the object.
"""

import argparse
import json
import time

import dslc
from dslc.compiler.constraints import compile_constraint
from dslc.core.constraint import Constraint
from dslc.runtime.engine import Engine

FIELDS = {
    "customer_name": {"type": "string", "maxLength": 12},
    "is_returning_customer": {"type": "boolean"},
    "number_of_items": {"type": "integer", "minimum": 0, "maximum": 99},
    "preferred_delivery_method": {"enum": ["express delivery", "standard delivery", "pick up in the shop"]},
    "needs_an_invoice": {"type": "boolean"},
}
ORDER = {"type": "object", "properties": FIELDS, "required": list(FIELDS), "additionalProperties": False}
CONSTRAINTS = {
    "object of five fields": ("json_schema", json.dumps(ORDER)),
    "list of words": ("json_schema", '{"type": "array", "items": {"enum": ["red wine", "red meat", "bread"]}, '
                      '"minItems": 2, "maxItems": 3}'),
    "sentence with holes": ("regex", r"The answer is (yes|no), because it is (red|green|blue)\."),
    "date and time": ("regex", r"20[0-9]{2}-[01][0-9]-[0-3][0-9], at [0-2][0-9]:[0-5][0-9] o'clock"),
}  # fmt: skip
MODES = (True, "step", False)


def prompts(num):
    things = ["order", "letter", "ticket", "report", "question", "day", "house", "story"]
    return [f"Write about the {things[i % 8]} number {i}.\n" for i in range(num)]


def generate(engine, kind, source, texts, jump, **options):
    """Outputs, counters, seconds of one batch."""
    before, started = engine.counters(), time.perf_counter()
    params = {"max_new_tokens": 160, "temperature": 0.0, kind: source, "jump_forward": jump, **options}
    outputs = engine.generate(texts, params)
    return outputs, engine.counters() - before, time.perf_counter() - started


def causal_bound(engine, kind, source, ids):
    """How many of these tokens are determined before they are sampled."""
    tokenizer = engine.tokenizer
    matcher = compile_constraint(Constraint(kind, source), tokenizer.vocabulary, encode=tokenizer.encode).start()
    index, found, left, after = matcher.index, 0, b"", -1
    for token in ids:
        data = tokenizer.vocabulary.token_bytes[token] or b""
        if not left:
            left, after = index.forced_bytes(matcher.state_key[1])
        if left.startswith(data):
            found += not index._may_grow(left, after)
            left = left[len(data) :]
        else:
            left = b""
        matcher.advance(token)
    return found


def logprob(engine, prompt, text):
    """Natural log of the probability of a text after a prompt, tokenised as one, and how many tokens that are."""
    start = len(engine.encode_prompt(prompt))
    result = engine.generate(
        prompt + text, {"max_new_tokens": 0}, return_logprob=True, logprob_start_len=start
    )["meta_info"]["input_token_logprobs"]  # fmt: skip
    return sum(value for value, _, _ in result), len(result)


def share(engine, num):
    kind, source = CONSTRAINTS["object of five fields"]
    for jump in MODES:
        engine.flush_cache()
        outputs, used, seconds = generate(engine, kind, source, prompts(num), jump)
        total, forced = used.generated_tokens, used.forced_tokens
        line = f"jump_forward={jump!s:5}: {total} tokens, {forced} forced ({100 * forced / total:.1f} %)"
        if jump is True:
            bound = sum(causal_bound(engine, kind, source, o["output_ids"]) for o in outputs)
            line += f", causal bound {bound} ({100 * bound / total:.1f} %; {100 * forced / bound:.1f} % of it reached)"
        print(f"{line}; {used.forwards} forwards, {used.rows} rows, {seconds:.2f} s")


def draws(engine, num):
    for name, (kind, source) in CONSTRAINTS.items():
        texts = prompts(num)
        jumped = [o["text"] for o in generate(engine, kind, source, texts, True)[0]]
        masked = [o["text"] for o in generate(engine, kind, source, texts, False)[0]]
        differ = [(p, a, b) for p, a, b in zip(texts, jumped, masked, strict=True) if a != b]
        gaps = [logprob(engine, p, a)[0] - logprob(engine, p, b)[0] for p, a, b in differ]
        mean = sum(gaps) / len(gaps) if gaps else 0.0
        print(
            f"{name}: {len(differ)} of {num} texts differ; log p(jumped) - log p(masked only), tokenised as one with "
            f"the prompt: mean {mean:+.3f} nats over those, {sum(g > 0 for g in gaps)} above 0"
        )


def steps(engine, num):
    @dslc.function
    def program(s):
        s += "Fill in the order: Ada wants four books, quickly.\n"
        s += dslc.gen("order", json_schema=ORDER, max_tokens=160)

    for jump in MODES:
        engine.flush_cache()
        before = engine.counters()
        state = program.run(backend=engine, temperature=0, jump_forward=jump)
        used = engine.counters() - before
        per = used.forwards / used.generated_tokens
        print(f"jump_forward={jump!s:5}: {used.forwards} forwards for {used.generated_tokens} tokens: {per:.2f} each")
    print(state["order"])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="?", choices=("share", "draws", "steps"))
    parser.add_argument("--prompts", type=int, default=40)
    options = parser.parse_args()
    with Engine(dtype="float32") as engine:
        for verb in (share, draws, steps):
            if options.what in (None, verb.__name__):
                verb(engine, options.prompts)


if __name__ == "__main__":
    main()
