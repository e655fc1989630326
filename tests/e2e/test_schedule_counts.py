"""What a Schedule predicts is what the engine counts (page size 1, a cache that fits)."""

import pytest
import torch

import dslc
from dslc.compiler.schedule import Instance, Workload, first_prompt, schedule


@dslc.function
def capital(s, country, style):
    s += dslc.system("You know the capitals of all countries. Answer with one word.")
    s += dslc.user(f"{style}: what is the capital of {country}?")
    s += dslc.assistant(dslc.gen("answer", max_tokens=3))


COUNTRIES = ["France", "Italy", "Spain", "Peru", "Chile", "Japan"]
STYLES = ["Please", "Quick", "Quickly now"]


@pytest.fixture(scope="module")
def engine():
    torch.set_num_threads(1)
    with dslc.Engine(dtype="float32") as engine:
        yield engine


@pytest.mark.parametrize("repeats", [1, 2])
def test_prefilled_tokens_are_the_nodes_of_the_trie(engine, repeats):
    rows = [{"country": country, "style": style} for country in COUNTRIES for style in STYLES] * repeats
    plan = capital.plan(engine.tokenizer)
    workload = Workload(tuple(Instance(plan, row) for row in rows))
    predicted = schedule(workload, engine.tokenizer)
    prompts = [first_prompt(instance, engine.tokenizer) for instance in workload.instances]
    engine.flush_cache()
    before = engine.counters()
    states = capital.run_batch(rows, backend=engine, temperature=0, on_error="raise")
    counted = engine.counters() - before
    assert len(states) == len(rows)
    assert counted.prompt_tokens == predicted.num_prompt_tokens == sum(map(len, prompts))
    # A request whose whole prompt is cached computes its last token again, for its logits.
    num_wholly_cached = len(prompts) - len(set(prompts))
    assert counted.prefilled_tokens == predicted.num_distinct_tokens + num_wholly_cached
    assert counted.cached_tokens == predicted.num_shared_tokens - num_wholly_cached


def test_the_static_prefix_is_cached_after_one_run(engine):
    plan = capital.plan(engine.tokenizer)
    engine.flush_cache()
    capital.run(country="Peru", style="Please", backend=engine, temperature=0)
    before = engine.counters()
    capital.run(country="Japan", style="Never", backend=engine, temperature=0)
    cached = (engine.counters() - before).cached_tokens
    assert cached >= len(plan.static_prefix) > 10
