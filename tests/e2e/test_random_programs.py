"""Law: interpreted = compiled = saved and loaded, on random programs written as Python source; calls of the user's
functions are counted equal. By default on a scripted backend and, fewer, on the engine in deterministic mode."""

import hashlib
import importlib.util
import itertools
import random

import pytest
import torch
from support import random_forms, random_sources
from support.scripted import ScriptedBackend
from support.tiny_models import tiny_checkpoint

import dslc
from dslc.compiler.plan import Plan
from dslc.lang.executor import Executor
from dslc.lang.hub import Hub
from dslc.lang.options import run_options
from dslc.lang.state import ProgramState
from dslc.lang.walker import walk_plan

NUMBERS = itertools.count()


def load(source, folder):
    """The module of a random program, from a file, so that its source can be read."""
    number = next(NUMBERS)
    path = folder / f"program_{number}.py"
    path.write_text(source)
    spec = importlib.util.spec_from_file_location(f"random_program_{number}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def scripted(seed):
    def answer(prompt):
        digest = hashlib.sha256(f"{seed}{prompt}".encode()).digest()
        return "".join("ab c"[b % 4] for b in digest[: 1 + digest[0] % 3])

    return ScriptedBackend(answer)


def arguments_of(seed):
    rng = random.Random(seed)
    return {"q": rng.choice(["Why a", "b", "a b c"]), "items": rng.choice([[], ["one"], ["a", "bb", "c"]])}


def told(module, run):
    """Everything that a run shows."""
    module.CALLS.clear()
    if hasattr(module, "STATE"):
        module.STATE["n"] = 0
    try:
        state = run()
    except Exception as error:
        return type(error).__name__, list(module.CALLS)
    if state.error() is not None:
        return type(state.error()).__name__, list(module.CALLS)
    return state.text(), state.ret_value, state.variables(), list(module.CALLS)


def loaded_run(function, backend, arguments, options):
    """Run the plan that was saved and loaded, with the functions of this process."""
    plan = function.plan_to_run(backend, True, None)
    again = Plan.from_json(plan.to_json())
    hub = Hub(backend)
    executor = Executor(hub, function.__name__, run_options(options, None), 0, again)
    executor.types, executor.hosts = function.types, function.hosts
    hub.run_here(executor, lambda: walk_plan(executor, again, arguments))
    return ProgramState(executor)


def check(seed, folder, backend_of, options, make_source=random_sources.make_source):
    source = make_source(seed)
    module = load(source, folder)
    function, arguments = module.program, arguments_of(seed)
    interpreted = told(module, lambda: function.run(**arguments, backend=backend_of(), compiled=False, **options))
    chosen = told(module, lambda: function.run(**arguments, backend=backend_of(), **options))
    assert chosen == interpreted, source
    if interpreted[0] == "UndefinedVariable" or not function.compile().is_whole:
        return False
    again = told(module, lambda: loaded_run(function, backend_of(), arguments, options))
    assert again == interpreted, source
    return True


@pytest.mark.parametrize("first", range(0, 200, 20))
def test_random_programs_on_a_scripted_backend(first, tmp_path):
    whole = sum(
        check(seed, tmp_path, lambda seed=seed: scripted(seed), {"seed": 1}) for seed in range(first, first + 20)
    )
    assert whole >= 12  # else the law would say nothing of compiled programs


@pytest.mark.parametrize("first", range(0, 60, 20))
def test_random_programs_of_many_forms(first, tmp_path):
    whole = sum(
        check(seed, tmp_path, lambda seed=seed: scripted(seed), {"seed": 1}, random_forms.make_source)
        for seed in range(first, first + 20)
    )
    assert whole >= 4


# What the random programs of many forms have found.
FOUND = [
    11,  # an attribute read again after it was set
    14,  # the same, in a pattern of a `match`
    230,  # a class pattern on a value that is not known yet
    291,  # the `else` of a loop that is left by a `break`
    305,  # a class pattern in a loop
    320,  # the `else` of a loop with another `else` behind it
    439,  # a class pattern behind a variable scope
    668,  # a loop in a function inside that appends to a list of the function around it
    2091,  # a `break` with a `finally` around it
]


@pytest.mark.parametrize("seed", FOUND)
def test_random_programs_that_have_failed(seed, tmp_path):
    check(seed, tmp_path, lambda: scripted(seed), {"seed": 1}, random_forms.make_source)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(10_000, 11_000, 100))
def test_a_thousand_random_programs_of_many_forms(first, tmp_path):
    for seed in range(first, first + 100):
        check(seed, tmp_path, lambda seed=seed: scripted(seed), {"seed": 1}, random_forms.make_source)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(200, 1200, 100))
def test_a_thousand_random_programs_on_a_scripted_backend(first, tmp_path):
    for seed in range(first, first + 100):
        check(seed, tmp_path, lambda seed=seed: scripted(seed), {"seed": 1})


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    torch.set_num_threads(1)
    with dslc.Engine(model_path=str(tiny_checkpoint()), dtype="float32", deterministic=True) as engine:
        yield engine


def on_the_engine(seeds, folder, engine):
    def fresh():
        engine.flush_cache()
        return engine

    for seed in seeds:
        for temperature in (0, 0.9):
            check(seed, folder, fresh, {"seed": 5, "temperature": temperature})


def test_random_programs_on_the_engine(engine, tmp_path):
    on_the_engine(range(2000, 2010), tmp_path, engine)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(3000, 4000, 50))
def test_a_thousand_random_programs_on_the_engine(first, engine, tmp_path):
    on_the_engine(range(first, first + 50), tmp_path, engine)
