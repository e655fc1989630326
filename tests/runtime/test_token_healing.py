"""Token healing at the seam of prompt and constraint: the masks are those of the two as one, and texts add up."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from support.tiny_models import tiny_checkpoint

import dslc
from dslc.compiler import journal
from dslc.compiler.constraints import compile_constraint
from dslc.compiler.constraints.healing import healing
from dslc.compiler.constraints.interface import Matcher, mask_words
from dslc.compiler.recording import Recording
from dslc.core.constraint import Constraint
from dslc.core.errors import ConstraintError, RequestError
from dslc.core.events import Failed, Finished
from dslc.core.request import GenRequest, Segment
from dslc.core.text.tokenizer import Tokenizer
from dslc.lang import common
from dslc.runtime.engine import Engine

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine(model_path=str(tiny_checkpoint("llama")), device="cpu", deterministic=True) as engine:
        engine.check_when_idle = True
        yield engine


@pytest.fixture(scope="module")
def tokenizer(engine: Engine) -> Tokenizer:
    assert engine.tokenizer is not None
    return engine.tokenizer


def allowed(matcher: Matcher, size: int) -> list[int]:
    row = np.zeros(mask_words(size), np.int32)
    matcher.fill_mask(row)
    words = row.view(np.uint32)
    return [i for i in range(size) if words[i // 32] >> (i % 32) & 1]


SEAMS = [
    (": ", "yes|no"), ("The ans", "wer|er"), (" ", r"\d{2}"), ("é", "(é|e)+"), ('{"', 'a": 1}'), ("x", "[a-z ]{0,4}"),
]  # fmt: skip


@pytest.mark.parametrize(("healed", "pattern"), SEAMS)
def test_masks_are_those_of_text_and_constraint_as_one(healed: str, pattern: str, tokenizer: Tokenizer) -> None:
    """In every state of random walks, rolled back and copied on the way; forced tokens and shortest ends too."""
    rng, size = random.Random(1), tokenizer.vocabulary.size
    whole = Constraint("regex", f"({re.escape(healed)})({pattern})")
    for _ in range(12):
        inner = compile_constraint(Constraint("regex", pattern), tokenizer.vocabulary, encode=tokenizer.encode).start()
        one: Matcher = healing(inner, healed)
        both = compile_constraint(whole, tokenizer.vocabulary, encode=tokenizer.encode).start()
        taken = 0
        while True:
            assert (one.is_accepting, one.must_stop) == (both.is_accepting, both.must_stop)
            assert one.forced() == both.forced()
            way, other = one.shortest_end(), both.shortest_end()
            assert way is not None and other is not None and len(way) >= len(other)
            found = allowed(one, size)
            assert found == allowed(both, size)
            if not found or taken > 8:
                break
            if taken and rng.random() < 0.3:
                back = rng.randrange(1, taken + 1)
                one = one.copy()
                one.rollback(back)
                both.rollback(back)
                taken -= back
                continue
            token = rng.choice(found)
            one.advance(token)
            both.advance(token)
            if token in tokenizer.eos_ids:
                assert one.is_terminated
                break
            taken += 1


def test_wrong_tokens_are_refused(tokenizer: Tokenizer) -> None:
    matcher = healing(compile_constraint(Constraint("regex", "yes"), tokenizer.vocabulary).start(), ": ")
    for token in (tokenizer.encode("no")[0], tokenizer.eos_ids[0], tokenizer.vocabulary.size):
        with pytest.raises(ConstraintError, match="does not spell the healed text"):
            matcher.advance(token)
    with pytest.raises(ConstraintError, match="cannot roll back"):
        matcher.rollback(1)


def run(engine: Engine, prompt: str, **options: Any) -> tuple[Any, GenRequest]:
    @dslc.function
    def program(s: Any) -> None:
        s += prompt
        s += dslc.gen("value", max_tokens=24, **options)
        s += " and on"
        s += dslc.gen("more", regex="[a-z]{1,3}", max_tokens=4)

    recording = Recording(engine)
    state = program.run(backend=recording, temperature=1.0, seed=3)
    if state.error() is not None:
        raise state.error()
    return state, recording.entries[0].request


PROMPTS = ["Question: what? Answer:", "Is it? ", "a", "The list is\n- ", "Caf\u00e9 is"]


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("jump", [True, "step", False])
def test_text_and_ids_add_up(prompt: str, jump: Any, engine: Engine, tokenizer: Tokenizer) -> None:
    for pattern in ("( yes| no)", "[a-z]{2,9}", r"\d\d", "s the answer"):
        state, request = run(engine, prompt, regex=pattern, jump_forward=jump)
        ids = [i for segment in request.segments for i in segment.ids]
        assert re.fullmatch(pattern, state["value"])
        assert state.text() == prompt + state["value"] + " and on" + state["more"]
        output = state.get_meta_info("value")["output_ids"]
        text = tokenizer.decode([*ids, *output], skip_special_tokens=True)
        assert text == prompt + state["value"] and text.endswith(request.healed + state["value"])


def test_what_is_forced_is_tokenised_as_one_with_the_prompt(engine: Engine, tokenizer: Tokenizer) -> None:
    """The ids are those of prompt and value written together, whole choice forced or not."""
    num_changed = 0
    for prompt in PROMPTS:
        for value in (" yes", "s it", "bcd", " the answer is 42."):
            state, request = run(engine, prompt, regex=re.escape(value))
            ids = [i for segment in request.segments for i in segment.ids]
            output = state.get_meta_info("value")["output_ids"]
            if not request.healed:  # all there is of the prompt: something has to be before the output
                assert prompt == "a"
                continue
            settled = tokenizer.encode(prompt.removesuffix(request.healed))
            written = ids[: len(ids) - len(settled)]
            assert [*ids, *output] == [*written, *tokenizer.encode(prompt + value)]
            apart, other = run(engine, prompt, regex=re.escape(value), token_healing=False)
            assert other.healed == "" and apart["value"] == value
            num_changed += tokenizer.encode(prompt) + tokenizer.encode(value) != tokenizer.encode(prompt + value)
    assert num_changed > 3


def test_branches_choices_streams_and_stops(engine: Engine) -> None:
    @dslc.function
    def program(s: Any) -> None:
        s += "Two things:"
        forks = s.fork(2)
        for i, branch in enumerate(forks):
            branch += "" if i else " first"
            branch += dslc.gen("part", regex="[a-z ]{2,6}", max_tokens=8)
        forks.join()
        s += "; then"
        s += dslc.gen("stopped", regex="[a-c]{1,3};[a-z]{9}", stop=";", max_tokens=9)
        s += dslc.gen("many", regex="[xyz]{2}", n=3, max_tokens=5)

    state = program.run(backend=engine, temperature=1.0, seed=2)
    assert re.fullmatch("[a-c]{1,3}", state["stopped"]) and all(re.fullmatch("[xyz]{2}", t) for t in state["many"])
    assert state.text().startswith("Two things:") and state.text().endswith(state["stopped"] + state["many"][0])
    told = program.run(backend=engine, temperature=1.0, seed=2, stream=True)
    assert "".join(told.text_iter()) == state.text()


def test_a_cut_in_the_healed_text_gives_it_back(engine: Engine) -> None:
    """A request whose healed text takes more tokens than there are: the rest is the kept tail."""
    events: list[Any] = []
    asked = GenRequest(
        id="r", segments=(Segment(text="Some"),), healed=" long text indeed", constraint=Constraint("regex", "x"),
        sampling=dslc.SamplingParams(max_new_tokens=0),
    )  # fmt: skip
    engine.submit([asked], events.append)
    assert engine.wait(lambda: bool(events) and isinstance(events[-1], (Finished, Failed)), timeout=30)
    assert isinstance(events[-1], Finished), events
    (output,) = events[-1].outputs
    assert output.text == "" and output.kept_tail == asked.healed and output.kept_ids == ()


def test_requests_differ_by_what_is_healed(tokenizer: Tokenizer) -> None:
    """What keeps results by their requests (a hub, a journal) does not take one for the other."""
    asked = [
        GenRequest(id="r", segments=(Segment(ids=(5,)),), healed=healed, sampling=dslc.SamplingParams(temperature=0.0))
        for healed in ("", " ", ":")
    ]
    assert len({common.key_of(r) for r in asked}) == len({journal.key_of(r, tokenizer) for r in asked}) == 3


def test_it_is_refused_where_it_cannot_be(engine: Engine) -> None:
    with pytest.raises(RequestError, match="token_healing"):
        run(engine, "a b", token_healing=True)
