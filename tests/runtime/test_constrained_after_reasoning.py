"""A constrained gen with reasoning: free between the markers, the answer constrained."""

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
from dslc.compiler.constraints import compile_constraint
from dslc.compiler.constraints.after_reasoning import after_reasoning
from dslc.compiler.constraints.interface import Matcher, mask_words
from dslc.core.constraint import Constraint, Vocabulary
from dslc.core.errors import ConstraintError
from dslc.runtime.engine import Engine

torch.set_num_threads(1)

TOKENS = [
    b"a",
    b"b",
    b"<",
    b"</",
    b"t",
    b">",
    b"/t",
    b"</t>",
    b"</t>a",
    b"</t>x",
    b"a</t",
    b">ab",
    b">x",
    b"<t>",
    b"<t",
]
VOCABULARY = Vocabulary.of((None, *TOKENS, None), (0,))
SPECIAL = len(TOKENS) + 1


def allowed(matcher: Matcher) -> list[int]:
    row = np.zeros(mask_words(VOCABULARY.size), np.int32)
    matcher.fill_mask(row)
    return [i for i in range(VOCABULARY.size) if row.view(np.uint32)[i // 32] >> (i % 32) & 1]


def is_viable(text: bytes, begin: bytes) -> bool:
    """Whether some output begins so: [ab]{2} after the marker."""
    if len(text) < len(begin):
        return begin.startswith(text)
    if not text.startswith(begin):
        return False
    _, ended, answer = text[len(begin) :].partition(b"</t>")
    return not ended or re.fullmatch(rb"[ab]{0,2}", answer) is not None


@pytest.mark.parametrize("special", [{}, {SPECIAL: b"</t>"}])
@pytest.mark.parametrize("begin", ["", "<t>"])
def test_masks_are_what_can_still_become_an_output(begin: str, special: dict[int, bytes]) -> None:
    """Every token in every state of random walks, with going back; a token over the end of the begin marker apart."""
    rng = random.Random(2)
    spelt = {**dict(enumerate(TOKENS, 1)), **special}
    num_answers = 0
    for _ in range(60):
        inner = compile_constraint(Constraint("regex", "[ab]{2}"), VOCABULARY).start()
        matcher: Matcher = after_reasoning(inner, begin, "</t>", special)
        taken: list[int] = []
        for _ in range(14):
            text = b"".join(spelt.get(i, b"") for i in taken)
            found = allowed(matcher)
            wanted = [
                i for i, data in spelt.items()
                if is_viable(text + data, begin.encode()) and not len(text) < len(begin) < len(text + data)
            ]  # fmt: skip
            assert [i for i in found if i in spelt] == sorted(wanted), text
            whole = re.fullmatch(re.escape(begin.encode()) + rb"(?s:.*?)</t>[ab]{2}", text) is not None
            assert matcher.is_accepting == (0 in found) == whole
            num_answers += whole
            way = matcher.copy()
            for token in matcher.shortest_end() or ():
                way.advance(token)
            assert way.is_accepting
            if taken and rng.random() < 0.2:
                back = rng.randrange(1, len(taken) + 1)
                matcher.rollback(back)
                del taken[-back:]
                continue
            if not wanted:
                break
            taken.append(rng.choice(sorted(wanted)))
            matcher.advance(taken[-1])
    assert num_answers > 5
    with pytest.raises(ConstraintError, match="before the answer"):
        after_reasoning(compile_constraint(Constraint("regex", "a"), VOCABULARY).start(), "", "</t>", {}).advance(0)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine(model_path=str(tiny_checkpoint("llama")), device="cpu") as engine:
        yield engine


@pytest.mark.parametrize("model_type", ["qwen3", "deepseek-r1", "kimi"])
def test_a_program_thinks_freely_and_answers_to_the_constraint(model_type: str, engine: Engine) -> None:
    @dslc.function
    def program(s: Any) -> None:
        s += "How many?"
        answer = dslc.gen("answer", int, max_tokens=60, finish_valid=True)
        s += dslc.separate_reasoning(answer, model_type=model_type)

    for seed in range(4):
        state = program.run(backend=engine, temperature=1.0, seed=seed)
        assert isinstance(state["answer"], int) and state["answer_reasoning_content"]
        assert state.text() == "How many?" + state.raw("answer")
        assert state.get_meta_info("answer")["is_complete"]
