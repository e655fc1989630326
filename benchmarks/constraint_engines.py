"""The engines that `constraints.py` compares, behind one small face, and the vocabulary they are compared over.

Our own automata are always there; llguidance, XGrammar and outlines-core come with the `bench` extra, and are left out
with a word where they are missing. All write masks into the same rows and get the same JSON spacing, `", "` and `": "`.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from dslc.compiler.constraints import compile as compiling
from dslc.compiler.constraints import interface, mask_words, prepare
from dslc.compiler.constraints.compile import ConstraintCache
from dslc.core.constraint import Constraint, Vocabulary
from dslc.core.errors import ConstraintError
from dslc.core.text.load import load_tekken
from dslc.runtime.scheduling.results import LOOK_AHEAD


class Refused(Exception):
    """The engine does not serve this constraint."""


class Run(Protocol):
    """One generation under a constraint. `fill` writes the packed mask, `advance` returns whether the token went in.

    `ahead` is what an engine does for the next masks while its model runs; it is not timed.
    """

    def ahead(self) -> None: ...

    def fill(self, row: np.ndarray) -> None: ...

    def advance(self, token: int) -> bool: ...

    def forced(self) -> list[int]: ...

    def accepting(self) -> bool: ...


class Engine(Protocol):
    """`compile` returns a maker of runs; it raises Refused. `forget` drops what was learnt from earlier constraints.

    `may_take_long`: it is measured in a process of its own, with a limit of time, and compiles once, for nothing that
    it learns in one run serves the next.
    """

    name: str
    may_take_long: bool

    def compile(self, kind: str, source: str) -> Callable[[], Run]: ...

    def forget(self) -> None: ...


class Tekken:
    """mistral-common's bundled tokenizer: 131,072 ids, 1,000 of them special."""

    def __init__(self) -> None:
        data = Path(importlib.import_module("mistral_common").__file__ or "").parent / "data" / "tekken_240911.json"
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "tekken.json").symlink_to(data)
            self.tokenizer = load_tekken(Path(folder))
        self.vocabulary: Vocabulary = self.tokenizer.vocabulary
        self.encode = self.tokenizer.encode
        self.row_words = mask_words(self.vocabulary.size)


class OwnRun:
    def __init__(self, matcher: interface.Matcher, num_ahead: int) -> None:
        self.matcher = matcher
        self.num_ahead = num_ahead
        self.fill = matcher.fill_mask
        self.forced = matcher.forced

    def ahead(self) -> None:
        self.matcher.look_ahead(self.num_ahead)

    def advance(self, token: int) -> bool:
        try:
            self.matcher.advance(token)
        except ConstraintError:
            return False
        return True

    def accepting(self) -> bool:
        return self.matcher.is_accepting


class Own:
    """Our automata, through the cache that requests use."""

    may_take_long = False

    def __init__(self, tekken: Tekken, num_ahead: int = LOOK_AHEAD) -> None:
        self.name = "dslc" if num_ahead else "dslc, nothing made ready"
        self.tekken = tekken
        self.num_ahead = num_ahead
        self.cache = ConstraintCache()
        compiling.automata._store = lambda: None  # type: ignore[method-assign]  # nothing from earlier runs
        prepare.prepare_vocabulary(tekken.vocabulary)

    def compile(self, kind: str, source: str) -> Callable[[], Run]:
        try:
            made = self.cache.get(Constraint(kind, source), self.tekken.vocabulary, encode=self.tekken.encode)  # type: ignore[arg-type]
        except ConstraintError as error:
            raise Refused(str(error)) from None
        self.compiled = made
        return lambda: OwnRun(made.start(), self.num_ahead)

    def forget(self) -> None:
        self.cache.clear()
        compiling.automata.forget()
        prepare.forget_shared(self.tekken.vocabulary)


class GuidanceRun:
    def __init__(self, matcher: Any) -> None:
        self.matcher = matcher
        self.forced = matcher.compute_ff_tokens
        self.advance = matcher.consume_token
        self.accepting = matcher.is_accepting

    def ahead(self) -> None:
        """It offers nothing of the kind."""

    def fill(self, row: np.ndarray) -> None:
        self.matcher.unsafe_compute_mask_ptr(row.ctypes.data, row.nbytes)


class Guidance:
    """llguidance; strict, with the slices that its makers advise for JSON."""

    name = "llguidance"
    may_take_long = False

    def __init__(self, tekken: Tekken) -> None:
        self.module = importlib.import_module("llguidance")
        vocabulary = tekken.vocabulary

        class Wrapped:
            eos_token_id = vocabulary.eos_ids[0]
            bos_token_id = None
            tokens = [t if t else b"\xff<special>" for t in vocabulary.token_bytes]  # noqa: RUF012
            special_token_ids = [i for i, t in enumerate(vocabulary.token_bytes) if t is None]  # noqa: RUF012

            def __call__(self, text: str | bytes) -> list[int]:
                return tekken.encode(text if isinstance(text, str) else text.decode("utf-8", "replace"))

        slices = self.module.LLTokenizer.json_slices()
        self.tokenizer = self.module.LLTokenizer(self.module.TokenizerWrapper(Wrapped()), slices=slices)

    def compile(self, kind: str, source: str) -> Callable[[], Run]:
        try:
            if kind == "regex":
                grammar = self.module.grammar_from("regex", source)
            else:
                compiler = self.module.JsonCompiler(separators=(", ", ": "), whitespace_flexible=False)
                grammar = compiler.compile(source)
        except ValueError as error:
            raise Refused(str(error)) from None
        first = self.module.LLMatcher(self.tokenizer, grammar, log_level=0)
        if first.is_error():
            raise Refused(first.get_error())
        return lambda: GuidanceRun(first.deep_copy())

    def forget(self) -> None:
        """It keeps nothing between constraints."""


class XGrammarRun:
    def __init__(self, module: Any, compiled: Any) -> None:
        self.matcher = module.GrammarMatcher(compiled)
        self.advance = self.matcher.accept_token
        self._torch = importlib.import_module("torch")

    def ahead(self) -> None:
        """It offers nothing of the kind."""

    def fill(self, row: np.ndarray) -> None:
        self.matcher.fill_next_token_bitmask(self._torch.from_numpy(row).unsqueeze(0))

    def forced(self) -> list[int]:
        return []  # it gives text, not tokens

    def accepting(self) -> bool:
        return bool(self.matcher.is_completed())


class XGrammar:
    """XGrammar with objects open as the standard has them; its cache of grammars is off."""

    name = "xgrammar"
    may_take_long = True

    def __init__(self, tekken: Tekken) -> None:
        self.module = importlib.import_module("xgrammar")
        vocabulary = tekken.vocabulary
        info = self.module.TokenizerInfo(
            [t or b"" for t in vocabulary.token_bytes], vocab_type=self.module.VocabType.RAW,
            vocab_size=vocabulary.size, stop_token_ids=list(vocabulary.eos_ids),
        )  # fmt: skip
        self.compiler = self.module.GrammarCompiler(info, max_threads=1, cache_enabled=False)

    def compile(self, kind: str, source: str) -> Callable[[], Run]:
        try:
            if kind == "regex":
                made = self.compiler.compile_regex(source)
            else:
                made = self.compiler.compile_json_schema(
                    source, any_whitespace=False, separators=(", ", ": "), strict_mode=False
                )
        except RuntimeError as error:
            raise Refused(str(error)) from None
        return lambda: XGrammarRun(self.module, made)

    def forget(self) -> None:
        """Its cache is off."""


class OutlinesRun:
    def __init__(self, guide: Any) -> None:
        self.guide = guide
        self.accepting = guide.is_finished

    def ahead(self) -> None:
        """It has all there is from the beginning."""

    def fill(self, row: np.ndarray) -> None:
        self.guide.write_mask_into(row.ctypes.data, row.size, row.itemsize)

    def advance(self, token: int) -> bool:
        try:
            self.guide.advance(token, return_tokens=False)
        except ValueError:
            return False
        return True

    def forced(self) -> list[int]:
        return []


class Outlines:
    """outlines-core: an index of all states, made ahead of time."""

    name = "outlines-core"
    may_take_long = True

    def __init__(self, tekken: Tekken) -> None:
        self.module = importlib.import_module("outlines_core")
        table: dict[bytes, list[int]] = {}
        for token, data in enumerate(tekken.vocabulary.token_bytes):
            if data and token not in tekken.vocabulary.eos_ids:
                table.setdefault(data, []).append(token)
        self.vocabulary = self.module.Vocabulary(tekken.vocabulary.eos_ids[0], table)

    def compile(self, kind: str, source: str) -> Callable[[], Run]:
        schemas = importlib.import_module("outlines_core.json_schema")
        try:
            pattern = source if kind == "regex" else schemas.build_regex_from_schema(source, whitespace_pattern=" ?")
            index = self.module.Index(pattern, self.vocabulary)
        except (ValueError, BaseException) as error:
            if isinstance(error, (KeyboardInterrupt, SystemExit)):
                raise
            raise Refused(str(error)[:200]) from None  # its panics are no Exceptions
        return lambda: OutlinesRun(self.module.Guide(index))

    def forget(self) -> None:
        """It keeps nothing between constraints."""


def peers(tekken: Tekken, names: list[str]) -> list[Engine]:
    """Our engine, and those of `names` that are installed; says which are not, and the versions of those that are."""
    known = {"llguidance": Guidance, "xgrammar": XGrammar, "outlines-core": Outlines}
    engines: list[Engine] = [Own(tekken)]
    for name in names:
        try:
            version = importlib.metadata.version(name)
            engines.append(known[name](tekken))
            print(f"{name} {version}")
        except (ImportError, importlib.metadata.PackageNotFoundError) as error:
            print(f"{name}: left out ({error})")
    return engines


def as_source(schema: Any) -> str:
    return json.dumps(schema, ensure_ascii=False)
