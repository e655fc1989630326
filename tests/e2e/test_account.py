"""The account of a run is what the engine counts: tokens, rows and forwards, on every workload of the benchmarks."""

import random
import sys
from pathlib import Path

import pytest
import torch

import dslc
from dslc.compiler.account import Job, Limits, PrefixSet, evaluate, trie_parts
from dslc.compiler.budget import budget, together
from dslc.compiler.recording import Recording
from dslc.core.errors import ProgramError
from dslc.core.request import ScoreTrie
from dslc.runtime.scoring import plan_trie

sys.path.insert(0, str(Path(dslc.__file__).parent / "benchmarks"))
from workloads import workloads

WORKLOADS = {workload.name: workload for workload in workloads(6)}


@pytest.fixture(scope="module")
def engine():
    torch.set_num_threads(1)
    with dslc.Engine(dtype="float32") as engine:
        yield engine


def recorded(workload, engine, **options):
    engine.flush_cache()
    recording, before = Recording(engine), engine.counters()
    workload.program.run_batch(
        workload.rows, backend=recording, seed=3, on_error="raise", **workload.options, **options
    )
    return recording, engine.counters() - before


def brute_force_law(recording):
    """Tokens computed: each request's tokens that no earlier prompt and no ended output (but its last token) begin
    with, at least one. Requests of one wave wait for each other, so their order does not matter."""
    known, pending, computed = [], [], 0
    jobs = recording.jobs()
    for number, job in enumerate(jobs):
        while pending and pending[0][0] <= job.wave:
            known += pending.pop(0)[1]
        shared = max((_common(job.prompt, other) for other in known), default=0)
        computed += len(job.prompt) - min(shared, len(job.prompt) - 1) + max(0, len(job.outputs) - 1)
        known.append(job.prompt)
        wave = next((e.wave for e in recording.entries[number + 1 :] if number in e.after), None)
        if wave is not None:
            pending.append((wave, [(*job.prompt, *output[:-1]) for output in job.outputs]))
            pending.sort(key=lambda item: item[0])
    return computed


def _common(a, b):
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


@pytest.mark.parametrize("name", WORKLOADS)
@pytest.mark.parametrize("options", [{"temperature": 0}, {"compiled": False}], ids=["compiled greedy", "interpreted"])
def test_the_account_equals_the_engines_counters(name, options, engine):
    recorded(WORKLOADS[name], engine, **options)  # from here on it is known whether its bodies keep a thread
    recording, counted = recorded(WORKLOADS[name], engine, **options)
    usage = evaluate(recording.jobs(), recording.limits)
    assert usage.differences(counted) == {}
    assert usage.forwards > 1 and usage.rows > usage.prefilled_tokens / 2
    program = WORKLOADS[name].program.compile()
    rows = [budget(program, engine.tokenizer, row, {"temperature": 0}) for row in WORKLOADS[name].rows]
    assert together(rows).holds(usage) == {}


@pytest.mark.parametrize("name", ["few-shot choice", "generative agents", "chat, short answers", "self-consistency"])
def test_tokens_computed_are_the_nodes_of_the_trie(name, engine):
    recording, counted = recorded(WORKLOADS[name], engine, temperature=0)
    assert counted.prefilled_tokens + counted.recomputed_tokens == brute_force_law(recording)


SMALL = {
    "small chunks": {"chunked_prefill_size": 16},
    "whole prompts": {"chunked_prefill_size": -1, "max_prefill_tokens": 64},
    "few at a time": {"max_running_requests": 3},
    "no mixed chunks": {"enable_mixed_chunk": False, "chunked_prefill_size": 48},
    "no cache": {"disable_radix_cache": True},
    "first come": {"schedule_policy": "fcfs", "max_running_requests": 4},
}


@pytest.mark.parametrize("options", SMALL.values(), ids=SMALL)
def test_the_account_follows_the_engines_limits(options):
    torch.set_num_threads(1)
    with dslc.Engine(dtype="float32", **options) as engine:
        for name in ("generative agents", "tree of thought", "few-shot choice"):
            recording, counted = recorded(WORKLOADS[name], engine, temperature=0)
            assert evaluate(recording.jobs(), recording.limits).differences(counted) == {}, name


def test_prompt_logprobs_are_computed_again(engine):
    @dslc.function
    def program(s, name):
        s += f"The name {name} is old. It is said to come from"
        s += dslc.gen("where", max_tokens=4, return_logprob=True, logprob_start_len=3)

    engine.flush_cache()
    recording, before = Recording(engine), engine.counters()
    program.run_batch([{"name": "Ada"}, {"name": "Ada"}, {"name": "Ben"}], backend=recording, temperature=0)
    usage = evaluate(recording.jobs(), recording.limits)
    assert usage.differences(engine.counters() - before) == {}
    assert usage.prefilled_tokens > usage.prompt_tokens / 2


def test_a_run_that_was_cut_has_no_account(engine):
    @dslc.function
    def program(s):
        s += "A " * 2000 + dslc.gen("x")

    recording = Recording(engine)
    assert program.run_batch([{}], backend=recording, compiled=False)[0].error() is not None
    with pytest.raises(ProgramError, match="failed"):
        recording.jobs()


def test_jobs_that_wait_for_each_other_are_refused():
    with pytest.raises(ValueError, match="1 jobs wait"):
        evaluate([Job((1, 2), ((3,),)), Job((1, 2), ((3,),), after=(1,))])


def test_what_a_guess_of_lengths_costs():
    chain = [Job((1, 2, 3), ((4, 5),)), Job((1, 2, 3, 4, 5, 6), ((7,),), after=(0,))]
    usage = evaluate(chain)
    assert (usage.prefilled_tokens, usage.cached_tokens, usage.forwards, usage.rows) == (5, 4, 3, 6)
    apart = evaluate(chain, Limits(disable_radix_cache=True))
    assert (apart.prefilled_tokens, apart.forwards, apart.rows) == (9, 3, 10)


def test_prefix_sets_against_brute_force():
    rng = random.Random(5)
    for _ in range(200):
        sets, plain = PrefixSet(), []
        cover = rng.random() < 0.5
        for _ in range(rng.randrange(12)):
            ids = tuple(rng.choices((0, 1, 256, -1), k=rng.randrange(6)))
            (sets.cover if cover else sets.add)(ids)
            plain.append(ids)
            if not cover and rng.random() < 0.3:
                gone = plain.pop(rng.randrange(len(plain)))
                sets.remove(gone)
            asked = tuple(rng.choices((0, 1, 256, -1), k=rng.randrange(7)))
            assert sets.longest(asked) == max((_common(asked, other) for other in plain), default=0)
            assert sets.num_tokens == len({seq[:i] for seq in plain for i in range(1, len(seq) + 1)})
        assert sets.longest((0,), "elsewhere") == 0


def test_the_rows_of_tries_are_the_engines():
    rng = random.Random(7)
    for max_rows in (1, 3, 2048):
        for _ in range(100):
            sequences = tuple(tuple(rng.choices("ab", k=rng.randint(1, 5))) for _ in range(rng.randint(1, 6)))
            work = plan_trie(sequences, max_rows)
            mine = [rows for rows, _ in trie_parts(ScoreTrie(sequences), max_rows)]
            assert mine == [len(part.token_ids) for part in work.parts]
