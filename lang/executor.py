"""The executor: carries out the ops of one program instance against a backend, as they come.

It is the sink of a running program's states. Whether an op comes from the Python body or from a Plan (`walker`), it is
carried out by the same rule; so both send the same requests. Ops of a stream wait for the generation before them;
reading a value suspends whoever reads, in the hub.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ..compiler.ir import (
    AnyOp,
    Copy,
    Fork,
    Gen,
    Join,
    Media,
    Opaque,
    Ref,
    Role,
    Scope,
    Select,
    Set,
    Special,
    Text,
    Tokens,
)
from ..core.errors import DslcError, ProgramError, RequestError, SourceLoc, TemplateError, UndefinedVariable
from ..core.events import Failed, Finished
from ..core.request import GenRequest, LogprobWish, Origin, ScoreTrie, Segment
from ..core.sampling import SamplingParams
from . import meta
from .choices import ChoicesDecision, choices_method
from .exprs import check_choices
from .stream import OpenRole, Slot, Step, Stream

if TYPE_CHECKING:
    from ..compiler.plan import Plan
    from .hub import Hub


@dataclass(frozen=True)
class RunOptions:
    """What a run fixes for all its gens: sampling defaults, the run seed, log-prob wishes."""

    sampling: tuple[tuple[str, Any], ...]
    seed: int
    logprobs: LogprobWish | None = None
    params: dict[tuple[tuple[str, Any], ...], SamplingParams] = field(default_factory=dict, repr=False)

    def merged(self, overrides: tuple[tuple[str, Any], ...]) -> SamplingParams:
        """The run's defaults with a gen's own options over them. Raises RequestError for an impossible combination."""
        known = self.params.get(overrides)
        if known is None:
            known = SamplingParams(**{**dict(self.sampling), **dict(overrides)})
            known.verify()
            self.params[overrides] = known
        return known


class Executor:
    """Sink and state of one running program instance. Used by one greenlet and its hub, in one thread at a time."""

    is_tracing = False

    def __init__(self, hub: Hub, title: str, options: RunOptions, instance: int = 0, plan: Plan | None = None) -> None:
        self.hub = hub
        self.title = title
        self.options = options
        self.instance = instance
        self.plan = plan
        self.backend = hub.backend
        self.tokenizer = hub.backend.tokenizer
        self.streams: dict[int, Stream] = {0: Stream(0, "0")}
        self.slots: dict[int, Slot] = {}  # by value id
        self.ret_value: Any = None
        self.failure: BaseException | None = None
        self._next_ref = 0
        self._next_stream = 1
        self._num_requests = 0
        self._in_flight: set[str] = set()
        self._delivered: set[int] = set()
        self._gathers: dict[tuple[int, ...], list[tuple[Slot, list[Slot | None]]]] = {}

    # -- Sink

    def new_ref(self) -> Ref:
        ref = Ref(self._next_ref)
        self._next_ref += 1
        return ref

    def new_stream(self) -> int:
        stream = self._next_stream
        self._next_stream += 1
        return stream

    def emit(self, op: AnyOp) -> None:
        """Take an op whose operands are plain values; carried out now, or when the stream gets there."""
        stream = self._stream(op)
        step = Step("op", op)
        if isinstance(op, (Gen, Select)):
            step.slot = self.slots[op.out.id] = Slot()
            if op.var is not None:
                stream.variables[op.var] = step.slot
        elif isinstance(op, Set):
            value = op.value
            stream.variables[op.var] = Slot(list(value) if isinstance(value, tuple) else value, is_done=True)
            return
        elif isinstance(op, (Fork, Copy)):
            step.branches = self._new_branches(stream, op)
        elif isinstance(op, Join):
            self._take_join(stream, op)
            step.branches = tuple(self.streams[branch] for branch in op.streams)
        self._add(stream, step)

    def enter(self, op: Role | Scope) -> None:
        stream = self._stream(op)
        if isinstance(op, Role):
            if any(isinstance(o, Role) for o in stream.regions):
                raise ProgramError("roles do not nest: close the open one first", where=op.where)
            slot = None
        else:
            slot = self.slots[op.out.id] = Slot()
        stream.regions.append(op)
        self._add(stream, Step("enter", op, slot))

    def leave(self, op: Role | Scope) -> None:
        stream = self.streams[op.stream]
        if op in stream.regions:
            stream.regions.remove(op)
        if isinstance(op, Scope):
            stream.variables[op.var] = self.slots[op.out.id]
        self._add(stream, Step("leave", op))

    def get(self, stream: int, var: str, where: SourceLoc | None) -> Any:
        known = self.streams[stream]
        if any(isinstance(op, Scope) and op.var == var for op in known.regions):
            raise UndefinedVariable(f"{var!r} is read inside its own scope", where=where)
        slot = known.variables.get(var)
        if slot is None:
            names = ", ".join(sorted(map(repr, known.variables))) or "none yet"
            raise UndefinedVariable(f"{var!r} is read before any op sets it; variables so far: {names}", where=where)
        return self._await(slot, where)

    def has(self, stream: int, var: str, where: SourceLoc | None) -> bool:
        return var in self.streams[stream].variables

    def text(self, stream: int, where: SourceLoc | None) -> str:
        self.sync(stream, where)
        return self.streams[stream].text

    def value_of(self, ref: Ref, where: SourceLoc | None) -> Any:
        return self._await(self.slots[ref.id], where)

    def opaque(self, reason: str, where: SourceLoc | None) -> None:
        return None

    def call(self, body: Callable[..., Any], state: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        return body(state, *args, **kwargs)

    # -- what states read besides

    def sync(self, stream: int, where: SourceLoc | None) -> None:
        """Wait until the stream has carried out everything. Raises what stopped it."""
        known = self.streams[stream]
        self.hub.wait_for(
            self, lambda: known.is_idle or known.error is not None, f"stream {known.path} cannot go on", where
        )
        if known.error is not None:
            raise self._deliver(known.error)

    def messages(self, stream: int, where: SourceLoc | None) -> list[dict[str, Any]]:
        self.sync(stream, where)
        known = self.streams[stream]
        open_turn = []
        if known.open_role is not None:
            open_turn = [{"role": known.open_role.op.role, "content": known.text[known.open_role.text_start :]}]
        return [dict(message) for message in known.messages] + open_turn

    def meta_info(self, stream: int, var: str, where: SourceLoc | None) -> Any:
        self.get(stream, var, where)
        info = self.streams[stream].variables[var].meta
        if info is None:
            raise ProgramError(f"{var!r} was not generated, so there is no meta info of it", where=where)
        return info

    def error(self) -> BaseException | None:
        """What made the program fail, so far."""
        if self.failure is not None:
            return self.failure
        return next((stream.error for stream in self.streams.values() if stream.error is not None), None)

    def _await(self, slot: Slot, where: SourceLoc | None) -> Any:
        if not slot.is_done:
            self.hub.wait_for(self, lambda: slot.is_done, "the value can never be known", where)
        if slot.error is not None:
            raise self._deliver(slot.error)
        return slot.value

    def _deliver(self, error: DslcError) -> DslcError:
        """Mark an error as raised inside the body: if the body goes on, it has handled it."""
        self._delivered.add(id(error))
        return error

    # -- ending

    @property
    def is_idle(self) -> bool:
        """Whether every stream has carried out everything."""
        return not self._in_flight and all(
            stream.is_idle or stream.error is not None for stream in self.streams.values()
        )

    def finish(self, error: BaseException | None) -> None:
        """The body has returned, or raised `error`: settle what the program ends with."""
        if error is not None:
            self.failure = error
            reason = ProgramError(f"the program ended with {type(error).__name__}: {error}")
            for stream in self.streams.values():
                if not stream.is_idle:
                    stream.fail(reason)
            self.hub.abort(self._in_flight)
            return
        for stream in self.streams.values():
            if stream.error is not None and id(stream.error) not in self._delivered:
                self.failure = stream.error
                return

    # -- steps

    def _stream(self, op: AnyOp) -> Stream:
        stream = self.streams[op.stream]
        if stream.is_joined:
            raise ProgramError("a branch is used after its join", where=op.where)
        if stream.error is not None:
            raise self._deliver(stream.error)
        return stream

    def _add(self, stream: Stream, step: Step) -> None:
        stream.queue.append(step)
        self._advance(stream)

    def _advance(self, stream: Stream) -> None:
        """Carry out the stream's steps up to the next generation."""
        while stream.queue and stream.is_started and stream.busy is None and stream.error is None:
            step = stream.queue[0]
            if isinstance(step.op, Join) and not all(branch.is_idle for branch in step.branches):
                failed = next((branch for branch in step.branches if branch.error is not None), None)
                if failed is None:
                    return
                stream.fail(failed.error or ProgramError("a branch failed"))
                return
            stream.queue.popleft()
            try:
                self._carry_out(stream, step)
            except DslcError as error:
                error.at(step.op.where)
                if step.slot is not None:
                    step.slot.fail(error)
                stream.fail(error)
        parent = self._joining_parent(stream)
        if parent is not None and (stream.is_idle or stream.error is not None):
            self._advance(parent)

    def _joining_parent(self, stream: Stream) -> Stream | None:
        if not stream.is_joined:
            return None
        return next(
            (s for s in self.streams.values() if s.queue and stream in s.queue[0].branches and s is not stream), None
        )

    def _carry_out(self, stream: Stream, step: Step) -> None:
        if step.kind == "enter":
            self._enter(stream, step)
        elif step.kind == "leave":
            self._leave(stream, step)
        else:
            rule = _RULES.get(type(step.op))
            if rule is None:
                raise ProgramError(f"the executor has no rule for the op {step.op.name!r}", where=step.op.where)
            rule(self, stream, step)

    def _text(self, stream: Stream, step: Step) -> None:
        op = step.op
        assert isinstance(op, Text)
        text = check_text(op.text, op.where)
        stream.begin(self.tokenizer, stream.open_role is not None)
        self._warn_of_special(text, op.where)
        stream.append_text(text)

    def _warn_of_special(self, text: str, where: SourceLoc | None) -> None:
        found = self.tokenizer.find_special(text) if self.tokenizer is not None and len(text) > 2 else None
        if found is not None:
            self.hub.warn(
                f"{where}: the text holds {found!r}, taken as plain text; dslc.special(...) parses special tokens",
                key=(where, found),
            )

    def _tokens(self, stream: Stream, step: Step) -> None:
        op = step.op
        assert isinstance(op, Tokens)
        if self.tokenizer is None:
            stream.append_text(op.text)
            return
        stream.begin(self.tokenizer, stream.open_role is not None or self._is_template_start(op.ids))
        stream.append_tokens(op, self.tokenizer)

    def _is_template_start(self, ids: Sequence[int]) -> bool:
        return bool(ids) and self.tokenizer is not None and ids[0] == self.tokenizer.bos_id

    def _special(self, stream: Stream, step: Step) -> None:
        op = step.op
        assert isinstance(op, Special)
        stream.begin(self.tokenizer, True)
        stream.append_special(op.text, self.tokenizer)

    def _media(self, stream: Stream, step: Step) -> None:
        op = step.op
        assert isinstance(op, Media)
        name = self.backend.capabilities.name
        raise ProgramError(f"the backend {name!r} takes no {op.kind}s", where=op.where)

    def _nothing(self, stream: Stream, step: Step) -> None:
        """A break in a plan: the body goes on by itself."""

    # -- chat turns and scopes

    def _enter(self, stream: Stream, step: Step) -> None:
        op = step.op
        if isinstance(op, Scope):
            assert step.slot is not None
            stream.scopes.append((op, len(stream.text), step.slot))
            return
        assert isinstance(op, Role)
        stream.roles = (*stream.roles, op.role)
        if op.prefix is not None:  # lowered: the body holds the template's text
            stream.open_role = OpenRole(op, len(stream.text) + len(op.prefix), op.suffix or "", len(op.prefix))
            return
        prefix, suffix = self._fragments(stream.roles, op.where)
        stream.begin(self.tokenizer, True)
        stream.append_special(prefix, self.tokenizer)
        stream.open_role = OpenRole(op, len(stream.text), suffix)

    def _fragments(self, roles: tuple[str, ...], where: SourceLoc | None) -> tuple[str, str]:
        template = self.tokenizer.chat_template if self.tokenizer is not None else None
        if template is None:
            raise TemplateError(
                f"a {roles[-1]} turn needs a chat template, and the model's tokenizer has none", where=where
            )
        found = template.fragments(roles)
        if found is not None:
            return found
        found = template.fragments(roles, plain=True)
        if found is None:
            raise TemplateError(
                f"the model's chat template cannot be used turn by turn: {template.explain(roles)}", where=where
            )
        self.hub.warn(
            f"{where}: the model's chat template changes some contents: {template.explain(roles)}", key=(where, roles)
        )
        return found

    def _leave(self, stream: Stream, step: Step) -> None:
        op = step.op
        if isinstance(op, Scope):
            _, start, slot = next(entry for entry in reversed(stream.scopes) if entry[0] is op)
            stream.scopes = [entry for entry in stream.scopes if entry[0] is not op]
            slot.set(stream.text[start:])
            return
        assert isinstance(op, Role)
        role, stream.open_role = stream.open_role, None
        if role is None:
            raise ProgramError(f"the {op.role} turn was not opened on this branch", where=op.where)
        end = len(stream.text)
        if op.suffix is not None:
            end -= len(op.suffix)
        stream.messages.append({"role": op.role, "content": stream.text[role.text_start : end]})
        if op.suffix is None:
            stream.append_special(role.suffix, self.tokenizer)

    # -- forks

    def _new_branches(self, stream: Stream, op: Fork | Copy) -> tuple[Stream, ...]:
        made: list[Stream] = []
        for number in op.streams if isinstance(op, Fork) else (op.target,):
            branch = Stream(number, f"{stream.path}.{stream.num_branches}", is_started=False)
            stream.num_branches += 1
            branch.variables = dict(stream.variables)
            branch.inherited = dict(stream.variables)
            branch.regions = list(stream.regions)
            self.streams[number] = branch
            made.append(branch)
        return tuple(made)

    def _fork(self, stream: Stream, step: Step) -> None:
        for branch in step.branches:
            stream.branch(branch)
        for branch in step.branches:
            self._advance(branch)

    def _take_join(self, stream: Stream, op: Join) -> None:
        """Settle at once what the parent's variables are after the join: lists that fill when the branches end."""
        branches = [self.streams[number] for number in op.streams]
        for branch in branches:
            if branch.is_joined:
                raise ProgramError("a branch is joined twice", where=op.where)
            branch.is_joined = True
        if op.mode != "gather_variable":
            return
        names: dict[str, None] = {}
        for branch in branches:
            names.update(
                (name, None) for name, slot in branch.variables.items() if branch.inherited.get(name) is not slot
            )
        for name in names:
            gathered = Slot()
            stream.variables[name] = gathered
            self._gathers.setdefault(op.streams, []).append((gathered, [b.variables.get(name) for b in branches]))

    def _join(self, stream: Stream, step: Step) -> None:
        op = step.op
        assert isinstance(op, Join)
        for gathered, slots in self._gathers.pop(op.streams, ()):
            failed = next((slot.error for slot in slots if slot is not None and slot.error is not None), None)
            if failed is not None:
                gathered.fail(failed)
            else:
                gathered.set(
                    [s.value if s is not None else None for s in slots],
                    [s.meta if s is not None else None for s in slots],
                )
        if op.mode == "concate_and_append":
            for branch in step.branches:
                self._append_branch(stream, branch)

    def _append_branch(self, stream: Stream, branch: Stream) -> None:
        """Append what a branch added. Its ids stay where they begin a run of their own; text is tokenised anew."""
        num_ids, text_len, pending = branch.fork_at
        added = branch.text[text_len:]
        if not pending and not stream.pending and len(branch.ids) > num_ids:
            stream.ids += branch.ids[num_ids:]
            stream.pending = branch.pending
            stream.text += added
        else:
            stream.append_special(added, self.tokenizer)
        stream.messages += branch.messages[len(stream.messages) :]

    # -- generations

    def _prompt(self, stream: Stream) -> tuple[Segment, ...]:
        """The stream as segments of a request; the run that is pending ends here."""
        stream.begin(self.tokenizer, stream.open_role is not None)
        stream.close_run(self.tokenizer)
        if self.tokenizer is None:
            return (Segment(text=stream.text),)
        return (Segment(ids=tuple(stream.ids)),)

    def _request_id(self, stream: Stream) -> str:
        self._num_requests += 1
        return f"{self.hub.name}-{self.instance}-{stream.path}-{self._num_requests}"

    def _seed(self, stream: Stream) -> int:
        """The seed of a stream's next request: a hash of (run seed, batch index, stream path, occurrence)."""
        text = f"{self.options.seed}/{self.instance}/{stream.path}/{stream.num_requests}"
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1

    def _gen(self, stream: Stream, step: Step) -> None:
        op, slot = step.op, step.slot
        assert isinstance(op, Gen) and slot is not None
        able = self.backend.capabilities
        sampling = self.options.merged(op.sampling)
        stream.num_requests += 1
        if sampling.seed is None:
            sampling = replace(sampling, seed=self._seed(stream))
        constraint = None
        if op.constraint is not None:
            if op.constraint.kind not in able.constraints:
                raise RequestError(
                    f"the backend {able.name!r} cannot enforce it", field=op.constraint.kind, where=op.where
                )
            constraint = op.constraint.resolve(check_text(op.constraint.source, op.where))
        wish = op.logprobs or self.options.logprobs
        if wish is not None and not able.logprobs:
            raise RequestError(f"the backend {able.name!r} gives no log-probs", field="return_logprob", where=op.where)
        request = GenRequest(
            id=self._request_id(stream), segments=self._prompt(stream), sampling=sampling, constraint=constraint,
            logprobs=wish, origin=self._origin(stream, op),
        )  # fmt: skip
        self._send(stream, request, slot, op, lambda event: self._generated(stream, slot, op, request, event))

    def _origin(self, stream: Stream, op: AnyOp) -> Origin:
        return Origin(self.title, getattr(op, "out", Ref(-1)).id, self.instance, stream.path)

    def _generated(self, stream: Stream, slot: Slot, op: Gen, request: GenRequest, event: Finished) -> None:
        first = event.outputs[0]
        if self.tokenizer is not None:
            stream.ids += first.kept_ids
            stream.pending = first.kept_tail
        else:
            stream.pending += first.text
        stream.text += first.text
        infos = [meta.of_output(request, event, output, self.tokenizer) for output in event.outputs]
        if request.sampling.n == 1:
            slot.set(first.text, infos[0])
        else:
            slot.set([output.text for output in event.outputs], infos)

    def _send(
        self, stream: Stream, request: GenRequest, slot: Slot, op: AnyOp, on_finished: Callable[[Finished], None]
    ) -> None:
        """Hand a request to the hub; the stream waits for its result."""
        stream.busy = slot
        self._in_flight.add(request.id)

        def done(event: Finished | Failed) -> None:
            self._in_flight.discard(request.id)
            if stream.busy is not slot:
                return  # the stream has failed meanwhile
            stream.busy = None
            if isinstance(event, Failed):
                self._failed(stream, slot, op, event)
            else:
                try:
                    on_finished(event)
                except DslcError as error:
                    slot.fail(error.at(op.where))  # type: ignore[arg-type]
                    stream.fail(error)
            self._advance(stream)

        self.hub.send(request, done)

    def _failed(self, stream: Stream, slot: Slot, op: AnyOp, event: Failed) -> None:
        error = event.error.exception().at(op.where)
        tail = stream.text[-60:]
        error.message += f" (in program {self.title!r}, after the prompt ending in {tail!r})"
        slot.fail(error)
        stream.fail(error)

    # -- choices

    def _select(self, stream: Stream, step: Step) -> None:
        op, slot = step.op, step.slot
        assert isinstance(op, Select) and slot is not None
        able = self.backend.capabilities
        if not able.scoring or self.tokenizer is None:
            raise RequestError(f"the backend {able.name!r} cannot score choices", field="choices", where=op.where)
        if not isinstance(op.choices, tuple):
            raise RequestError(f"must be a list of strings, not {op.choices!r}", field="choices", where=op.where)
        choices = tuple(check_text(choice, op.where) for choice in op.choices)
        check_choices(choices, op.where)
        method = choices_method(op.method)
        stream.begin(self.tokenizer, stream.open_role is not None)
        stream.num_requests += 1
        cut = self.tokenizer.safe_cut(stream.pending)
        fixed, tail = (*stream.ids, *self.tokenizer.encode(stream.pending[:cut])), stream.pending[cut:]
        if not fixed:
            raise RequestError("there must be some text before a select", field="choices", where=op.where)
        sequences = self._choice_ids(op, tail, choices)
        request = GenRequest(
            id=self._request_id(stream), segments=(Segment(ids=fixed),), score=ScoreTrie(sequences),
            origin=self._origin(stream, op),
        )  # fmt: skip

        def scored(event: Finished) -> None:
            if method.needs_unconditional:
                self._score_alone(stream, slot, op, sequences, lambda alone: decide(event, alone))
            else:
                decide(event, None)

        def decide(event: Finished, alone: Sequence[Sequence[float]] | None) -> None:
            decision = method(choices=choices, logprobs=event.scores, token_ids=sequences, unconditional=alone)
            chosen = self._draw(stream, op, choices, decision)
            stream.append_text(chosen)
            slot.set(chosen, meta.of_choices(request, event, choices, sequences, decision, alone))

        self._send(stream, request, slot, op, scored)

    def _choice_ids(self, op: Select, tail: str, choices: tuple[str, ...]) -> tuple[tuple[int, ...], ...]:
        """The canonical ids of (tail + choice) for each choice; from the plan where it has them for this tail."""
        assert self.tokenizer is not None
        if self.plan is not None:
            facts = self.plan.select(op.out)
            if facts.sequences and facts.tail == tail:
                return facts.sequences
        return tuple(tuple(self.tokenizer.encode(tail + choice)) for choice in choices)

    def _score_alone(
        self,
        stream: Stream,
        slot: Slot,
        op: Select,
        sequences: tuple[tuple[int, ...], ...],
        then: Callable[[Sequence[Sequence[float]]], None],
    ) -> None:
        """Score the choices after nothing but the beginning of a text (BOS, or end-of-text where there is no BOS)."""
        assert self.tokenizer is not None
        start = self.tokenizer.bos_id if self.tokenizer.bos_id is not None else next(iter(self.tokenizer.eos_ids), None)
        if start is None:
            raise RequestError(
                "this method needs a BOS or end-of-text token to score choices without a prompt",
                field="choices_method",
                where=op.where,
            )
        request = GenRequest(
            id=self._request_id(stream), segments=(Segment(ids=(start,)),), score=ScoreTrie(sequences),
            origin=self._origin(stream, op),
        )  # fmt: skip
        self._send(stream, request, slot, op, lambda event: then(event.scores))

    def _draw(self, stream: Stream, op: Select, choices: Sequence[str], decision: ChoicesDecision) -> str:
        """The decision; above temperature 0 a draw from softmax(score / temperature) with the stream's seed."""
        temperature = float(op.temperature)  # type: ignore[arg-type]
        if temperature < 1e-6:
            return decision.decision
        import math

        best = max(decision.scores)
        weights = [math.exp((score - best) / temperature) for score in decision.scores]
        point = self._seed(stream) / 2.0**63 * sum(weights)
        for choice, weight in zip(choices, weights, strict=True):
            point -= weight
            if point < 0:
                return choice
        return choices[-1]


def check_text(value: Any, where: SourceLoc | None) -> str:
    """`value`, if it is a str. Raises ProgramError at the user's line."""
    if isinstance(value, str):
        return value
    raise ProgramError(
        f"a {type(value).__name__} cannot be appended to a program; convert it to a str first", where=where
    )


_RULES: dict[type, Callable[[Executor, Stream, Step], None]] = {
    Text: Executor._text, Tokens: Executor._tokens, Special: Executor._special, Media: Executor._media,
    Gen: Executor._gen, Select: Executor._select, Fork: Executor._fork, Copy: Executor._fork, Join: Executor._join,
    Opaque: Executor._nothing,
}  # fmt: skip
