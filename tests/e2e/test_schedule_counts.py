"""What a Schedule predicts is what the engine counts (page size 1, a cache that fits)."""

import sys
from pathlib import Path

import pytest
import torch

import dslc
from dslc.compiler.ir import Tokens
from dslc.compiler.passes.base import CompileOptions
from dslc.compiler.schedule import Instance, Workload, first_prompt, schedule

sys.path.insert(0, str(Path(dslc.__file__).parent / "benchmarks"))
import chains
from workloads import workloads


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
    every = CompileOptions(disabled=("common-gens",))  # equal rows are asked for each by itself
    states = capital.run_batch(rows, backend=engine, temperature=0, on_error="raise", compile_options=every)
    counted = engine.counters() - before
    assert len(states) == len(rows)
    assert counted.prompt_tokens == predicted.num_prompt_tokens == sum(map(len, prompts))
    # A request whose whole prompt is cached computes its last token again, for its logits.
    num_wholly_cached = len(prompts) - len(set(prompts))
    assert counted.prefilled_tokens == predicted.num_distinct_tokens + num_wholly_cached
    assert counted.cached_tokens == predicted.num_shared_tokens - num_wholly_cached


def test_equal_gens_are_computed_once(engine):
    rows = [{"country": country, "style": style} for country in COUNTRIES for style in STYLES]
    engine.flush_cache()
    before = engine.counters()
    states = capital.run_batch(rows * 3, backend=engine, temperature=0, on_error="raise")
    counted = engine.counters() - before
    assert counted.requests == len(rows)
    assert [s["answer"] for s in states[: len(rows)]] * 3 == [s["answer"] for s in states]
    shared = [state.get_meta_info("answer").get("shared_with") for state in states]
    assert sum(name is None for name in shared) == len(rows)


@dslc.function
def label(s, name):
    s += f"{name} lives in a house. It is a"
    s += dslc.gen("what", max_tokens=4, ignore_eos=True)
    s += " house, and the street is"
    s += dslc.gen("street", max_tokens=3, ignore_eos=True)


def test_a_literal_rides_with_the_last_sampled_token(engine):
    """What follows a gen costs no forward of its own: its ids and the last sampled one go into one extend."""
    literal = engine.tokenizer.encode(" house, and the street is")
    assert any(isinstance(op, Tokens) and "street" in op.text for op in label.plan(engine.tokenizer).program.body)
    engine.flush_cache()
    before = engine.counters()
    state = label.run(name="Mia", backend=engine, temperature=0)
    counted = engine.counters() - before
    first = state.get_meta_info("what")["prompt_tokens"]
    assert counted.forwards == 4 + 3  # one for each token that was sampled
    assert counted.prefilled_tokens == first + 1 + len(literal)
    assert counted.rows == counted.prefilled_tokens + (4 - 1) + (3 - 1)


SMALL = ["document QA", "chat, short answers", "branch-solve-merge judge"]


@pytest.mark.parametrize("name", SMALL)
def test_what_is_chosen_computes_no_more_than_the_default_and_gives_the_same(name):
    """A pool of a quarter of what the workload leaves behind: order, programs in flight and hints are decisions."""
    load = next(load for load in workloads(12) if load.name == name)
    found = []
    for disabled in ((), ("order-free", "depth-first", "kv-pressure", "common-gens", "next-use")):
        with dslc.Engine(dtype="float32", deterministic=True, max_total_tokens=POOLS[name]) as small:
            options = {"compile_options": CompileOptions(disabled=disabled), "temperature": 0, "seed": 1}
            states = load.program.run_batch(load.rows, backend=small, on_error="raise", **options)
            counted = small.counters()
            found.append((counted.prefilled_tokens + counted.recomputed_tokens, [s.text() for s in states]))
    (chosen, texts), (default, others) = found
    assert texts == others
    assert chosen <= default
    if name != "document QA":
        assert chosen < 0.95 * default


POOLS = {"document QA": 460, "chat, short answers": 420, "branch-solve-merge judge": 640}


def test_the_static_prefix_is_cached_after_one_run(engine):
    plan = capital.plan(engine.tokenizer)
    engine.flush_cache()
    capital.run(country="Peru", style="Please", backend=engine, temperature=0)
    before = engine.counters()
    capital.run(country="Japan", style="Never", backend=engine, temperature=0)
    cached = (engine.counters() - before).cached_tokens
    assert cached >= len(plan.static_prefix) > 10


@dslc.function
def uneven(s, topic):
    s += f"About {topic}:"
    for branch, length in zip(s.fork(4), (8, 8, 8, 32), strict=True):
        branch += "note:" + dslc.gen("note", max_tokens=length, ignore_eos=True)


def test_the_longest_path_first_takes_fewer_forwards():
    """Two places for four branches, the long one last: 8 + 32 forwards in the order of the program, 32 by path."""
    torch.set_num_threads(1)
    with dslc.Engine(dtype="float32", max_running_requests=2, schedule_policy="fcfs") as engine:
        used, texts = [], []
        for disabled in ((), ("critical-path",)):
            engine.flush_cache()
            before = engine.counters()
            options = CompileOptions(disabled=("common-gens", *disabled))
            state = uneven.run(topic="foxes", backend=engine, temperature=0, compile_options=options)
            used.append((engine.counters() - before).forwards)
            texts.append(state.text())
        assert texts[0] == texts[1]
        assert used[0] <= 34 and used[1] >= 40


@dslc.function
def questions(s, document):
    s += document
    branches = s.fork(4)
    for number, branch in enumerate(branches):
        branch += f" Question {number}?" + dslc.gen("answer", max_tokens=4, ignore_eos=True)
    branches.join()


def test_what_branches_go_on_from_is_kept_in_a_pool_that_only_just_holds_them(engine):
    """The pool is full of other texts, and every token of it is needed: still the branches' text is computed once."""
    texts = [" ".join(f"{COUNTRIES[(i + k) % 6]} {i}" for k in range(40)) for i in range(6)]
    options = {"temperature": 0, "seed": 0}

    def used(engine, text):
        before = engine.counters()
        state = questions.run(document=text, backend=engine, **options)
        return engine.counters() - before, state["answer"]

    engine.flush_cache()
    whole, answers = used(engine, texts[0])
    need = whole.prefilled_tokens + whole.generated_tokens  # each of them once
    with dslc.Engine(dtype="float32", max_total_tokens=need) as small:
        for text in texts[1:]:
            used(small, text)
        found, same = used(small, texts[0])
    assert found.evicted_tokens > 0
    assert (found.prefilled_tokens, found.recomputed_tokens) == (whole.prefilled_tokens, 0)
    assert same == answers


@pytest.mark.parametrize("name, waits", [("ReAct agent", 0), ("RAG pipeline", 0), ("branch-solve-merge judge", 1)])
def test_a_program_takes_no_forward_and_no_row_more_than_its_results_need(name, waits):
    """`waits`: forwards for which branches wait while the first of them computes what all begin with."""
    (load,) = [load for load in workloads(1) if load.name == name]
    jobs, used = chains.run_one(load)
    assert used.forwards == chains.longest_chain(jobs) + waits
    assert used.rows == chains.distinct_rows(jobs) + used.scored_tokens
