"""dslc: write programs that talk to a language model as Python functions; compile them; run them fast.

Names are loaded when they are first used: `import dslc` alone loads neither torch nor a tokenizer.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .core.errors import (
        Aborted as Aborted,
    )
    from .core.errors import (
        ArgumentError as ArgumentError,
    )
    from .core.errors import (
        ConfigError as ConfigError,
    )
    from .core.errors import (
        ConstraintError as ConstraintError,
    )
    from .core.errors import (
        ContextOverflow as ContextOverflow,
    )
    from .core.errors import (
        DeadlineExceeded as DeadlineExceeded,
    )
    from .core.errors import (
        DslcError as DslcError,
    )
    from .core.errors import (
        EngineError as EngineError,
    )
    from .core.errors import (
        ModelLoadError as ModelLoadError,
    )
    from .core.errors import (
        ProgramError as ProgramError,
    )
    from .core.errors import (
        RemoteError as RemoteError,
    )
    from .core.errors import (
        RequestError as RequestError,
    )
    from .core.errors import (
        TemplateError as TemplateError,
    )
    from .core.errors import (
        TraceError as TraceError,
    )
    from .core.errors import (
        UndefinedVariable as UndefinedVariable,
    )
    from .core.errors import (
        VerifyError as VerifyError,
    )
    from .core.media import MediaLimits as MediaLimits
    from .core.media import media_limits as media_limits
    from .core.sampling import SamplingParams as SamplingParams
    from .lang.choices import (
        ChoicesDecision as ChoicesDecision,
    )
    from .lang.choices import (
        greedy_token_selection as greedy_token_selection,
    )
    from .lang.choices import (
        register_choices_method as register_choices_method,
    )
    from .lang.choices import (
        token_length_normalized as token_length_normalized,
    )
    from .lang.choices import (
        unconditional_likelihood_normalized as unconditional_likelihood_normalized,
    )
    from .lang.compat import (
        dump_state_text as dump_state_text,
    )
    from .lang.compat import (
        global_config as global_config,
    )
    from .lang.compat import (
        read_jsonl as read_jsonl,
    )
    from .lang.constraints import (
        choice as choice,
    )
    from .lang.constraints import (
        ebnf as ebnf,
    )
    from .lang.constraints import (
        json as json,
    )
    from .lang.constraints import (
        regex as regex,
    )
    from .lang.defaults import (
        flush_cache as flush_cache,
    )
    from .lang.defaults import (
        get_server_info as get_server_info,
    )
    from .lang.defaults import (
        set_default_backend as set_default_backend,
    )
    from .lang.exprs import (
        assistant as assistant,
    )
    from .lang.exprs import (
        assistant_begin as assistant_begin,
    )
    from .lang.exprs import (
        assistant_end as assistant_end,
    )
    from .lang.exprs import (
        image as image,
    )
    from .lang.exprs import (
        special as special,
    )
    from .lang.exprs import (
        system as system,
    )
    from .lang.exprs import (
        system_begin as system_begin,
    )
    from .lang.exprs import (
        system_end as system_end,
    )
    from .lang.exprs import (
        tool_result as tool_result,
    )
    from .lang.exprs import (
        user as user,
    )
    from .lang.exprs import (
        user_begin as user_begin,
    )
    from .lang.exprs import (
        user_end as user_end,
    )
    from .lang.exprs import (
        video as video,
    )
    from .lang.function import Function as Function
    from .lang.function import function as function
    from .lang.gens import (
        gen as gen,
    )
    from .lang.gens import (
        gen_int as gen_int,
    )
    from .lang.gens import (
        gen_string as gen_string,
    )
    from .lang.gens import (
        select as select,
    )
    from .lang.reasoning import separate_reasoning as separate_reasoning
    from .lang.record import record as record
    from .lang.record import replay as replay
    from .lang.remote.anthropic_api import Anthropic as Anthropic
    from .lang.remote.endpoint import RuntimeEndpoint as RuntimeEndpoint
    from .lang.remote.litellm_api import LiteLLM as LiteLLM
    from .lang.remote.openai_api import OpenAI as OpenAI
    from .lang.remote.vertex_api import VertexAI as VertexAI
    from .lang.scripted import ScriptedBackend as ScriptedBackend
    from .lang.sequence import seq as seq
    from .lang.several import run_together as run_together
    from .lang.state import ProgramState as ProgramState
    from .lang.state import ProgramStateGroup as ProgramStateGroup
    from .lang.tools import ToolCall as ToolCall
    from .lang.tools import ToolError as ToolError
    from .lang.tools import tool_of as tool_of
    from .lang.unordered import unordered as unordered
    from .runtime.engine import Engine as Engine

    Runtime = Engine

_HOME = {
    ".core.errors": (
        "Aborted", "ArgumentError", "ConfigError", "ConstraintError", "ContextOverflow", "DeadlineExceeded",
        "DslcError", "EngineError", "ModelLoadError", "ProgramError", "RemoteError", "RequestError", "TemplateError",
        "TraceError", "UndefinedVariable", "VerifyError",
    ),
    ".core.media": ("MediaLimits", "media_limits"),
    ".core.sampling": ("SamplingParams",),
    ".lang.choices": (
        "ChoicesDecision", "greedy_token_selection", "register_choices_method", "token_length_normalized",
        "unconditional_likelihood_normalized",
    ),
    ".lang.compat": ("dump_state_text", "global_config", "read_jsonl"),
    ".lang.constraints": ("choice", "ebnf", "json", "regex"),
    ".lang.defaults": ("flush_cache", "get_server_info", "set_default_backend"),
    ".lang.exprs": (
        "assistant", "assistant_begin", "assistant_end", "image", "special", "system", "system_begin", "system_end",
        "tool_result", "user", "user_begin", "user_end", "video",
    ),
    ".lang.gens": ("gen", "gen_int", "gen_string", "select"),
    ".lang.reasoning": ("separate_reasoning",),
    ".lang.record": ("record", "replay"),
    ".lang.remote.anthropic_api": ("Anthropic",),
    ".lang.remote.endpoint": ("RuntimeEndpoint",),
    ".lang.remote.litellm_api": ("LiteLLM",),
    ".lang.remote.openai_api": ("OpenAI",),
    ".lang.remote.vertex_api": ("VertexAI",),
    ".lang.scripted": ("ScriptedBackend",),
    ".lang.sequence": ("seq",),
    ".lang.tools": ("ToolCall", "ToolError", "tool_of"),
    ".lang.function": ("Function", "function"),
    ".lang.several": ("run_together",),
    ".lang.unordered": ("unordered",),
    ".lang.state": ("ProgramState", "ProgramStateGroup"),
    ".runtime.engine": ("Engine",),
}  # fmt: skip
_WHERE = {name: module for module, names in _HOME.items() for name in names}
# SGLang's name for a model that is run and shut down as a backend; here it runs in this process.
_ALIASES = {"Runtime": "Engine"}

__all__ = [*sorted([*_WHERE, *_ALIASES]), "__version__"]


def _built_in_engine() -> Any:
    from .runtime.engine import Engine

    return Engine()


def __getattr__(name: str) -> Any:
    module = _WHERE.get(_ALIASES.get(name, name))
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name, obj=sys.modules[__name__])
    if module.startswith(".lang"):
        importlib.import_module(".lang.defaults", __name__).register_factory(_built_in_engine)
    value = getattr(importlib.import_module(module, __name__), _ALIASES.get(name, name))
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
