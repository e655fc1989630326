"""While an engine has a thread of its own, full collections leave out what was there when it began."""

from __future__ import annotations

import gc
import weakref

import pytest
from support.tiny_models import tiny_checkpoint

from dslc.runtime.collector import without_old_objects
from dslc.runtime.engine import Engine


class Node:
    """One that can be part of a cycle."""


def cycle() -> weakref.ref[Node]:
    node = Node()
    node.itself = node  # type: ignore[attr-defined]
    return weakref.ref(node)


@pytest.fixture(autouse=True)
def frozen_by_nobody():
    assert gc.get_freeze_count() == 0
    yield
    assert gc.get_freeze_count() == 0


def test_old_objects_are_left_out_until_the_last_leaves_and_new_ones_are_not():
    old = Node()
    with without_old_objects():
        with without_old_objects():
            assert gc.get_freeze_count() > 1000
        seen = weakref.ref(old)
        old.itself = old
        del old
        new = cycle()
        gc.collect()
        assert new() is None and seen() is not None
    gc.collect()
    assert seen() is None


def test_what_the_user_has_frozen_stays_so():
    gc.freeze()
    try:
        with without_old_objects():
            pass
        assert gc.get_freeze_count() > 1000
    finally:
        gc.unfreeze()


def test_an_engine_leaves_them_out_while_its_thread_runs():
    with Engine(model_path=str(tiny_checkpoint("llama")), device="cpu", max_total_tokens=512) as engine:
        assert gc.get_freeze_count() == 0
        engine.start()
        engine.generate("Hi", {"max_new_tokens": 2})
        assert gc.get_freeze_count() > 1000
