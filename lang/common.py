"""Gens in common: equal requests that are in flight together are sent once, and all who asked hear of the result.

Equal means: the same ids (or text) of prompt, the same options but for the seed, the same constraint or choices - and a
result that is a function of these: greedy, or a scoring. Two draws at a temperature are two draws.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import chain
from typing import Any

from ..core.events import Event, Failed, Finished
from ..core.request import GenRequest


class CommonGens:
    """Who waits for whose result; one for each hub, touched by its thread only."""

    def __init__(self) -> None:
        self.num_shared = 0  # requests that were not sent
        self._leaders: dict[Any, str] = {}  # key -> the request that was sent
        self._keys: dict[str, Any] = {}  # of those sent
        self._followers: dict[str, list[GenRequest]] = {}
        self._leader_of: dict[str, str] = {}

    def joins(self, request: GenRequest) -> bool:
        """Whether the result of a request in flight will be this one's too; it need not be sent then."""
        key = key_of(request)
        if key is None:
            return False
        leader = self._leaders.get(key)
        if leader is None:
            self._leaders[key] = request.id
            self._keys[request.id] = key
            return False
        self._followers.setdefault(leader, []).append(request)
        self._leader_of[request.id] = leader
        self.num_shared += 1
        return True

    def results(self, event: Event) -> list[Event]:
        """The last events of those who waited for this one's request, which is over."""
        key = self._keys.pop(event.request_id, None)
        if key is not None:
            del self._leaders[key]
        followers = self._followers.pop(event.request_id, ())
        found: list[Event] = []
        for request in followers:
            del self._leader_of[request.id]
            if isinstance(event, Finished):
                seed = request.sampling.seed if request.sampling.seed is not None else event.seed
                found.append(
                    replace(
                        event,
                        request_id=request.id,
                        seed=seed,
                        num_cached_tokens=event.num_prompt_tokens,
                        shared_with=event.request_id,
                    )
                )
            elif isinstance(event, Failed):
                found.append(replace(event, request_id=request.id))
        return found

    def to_abort(self, request_ids: Iterable[str]) -> list[str]:
        """Of requests that nobody who asked for them wants any more, those that must go on are left out."""
        leading: list[str] = []
        for request_id in request_ids:
            leader = self._leader_of.pop(request_id, None)
            if leader is None:
                leading.append(request_id)
            else:
                self._followers[leader] = [one for one in self._followers[leader] if one.id != request_id]
        gone = [request_id for request_id in leading if not self._followers.get(request_id)]
        for request_id in gone:
            self._forget(request_id)
        return gone

    def _forget(self, request_id: str) -> None:
        key = self._keys.pop(request_id, None)
        if key is not None:
            del self._leaders[key]
        self._followers.pop(request_id, None)


def key_of(request: GenRequest) -> Any:
    """What two requests must agree in to have one result; None where equal requests may differ in it."""
    sampling = request.sampling
    if request.stream or request.timeout_s is not None or (request.score is None and not sampling.is_greedy):
        return None
    if sampling.seed is not None:
        sampling = replace(sampling, seed=None)
    segments = request.segments
    ids = tuple(chain.from_iterable([segment.ids for segment in segments]))
    rest = tuple([(i, segment) for i, segment in enumerate(segments) if not segment.ids])
    return (
        ids, rest, sampling, request.constraint, request.score, request.logprobs, request.adapter, request.cache_salt,
        request.priority, request.healed, request.reasoning, request.messages, request.choices,
    )  # fmt: skip
