"""Chat templates for models whose files have none: by name, or by the model's path.

Each is written from the format its model was published with; where a format has a default system message, a
conversation without one gets it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import TemplateError
from .template import ChatTemplate


@dataclass(frozen=True, slots=True)
class BuiltinTemplate:
    """`source` is Jinja; `models` matches (anywhere, in lower case) the paths of the models that speak it."""

    source: str
    models: str


def _chatml(default_system: str = "") -> str:
    opening = ""
    if default_system:
        opening = (
            "{% if messages and messages[0].role != 'system' %}"
            f"{{{{ '<|im_start|>system\\n{default_system}<|im_end|>\\n' }}}}"
            "{% endif %}"
        )
    return (
        opening
        + "{% for message in messages %}"
        + "{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
        + "{% endfor %}"
        + "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    )


_LLAMA3 = """\
{{- bos_token }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' }}
    {{- message.content | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

# The system message is folded into the first user message; users and assistants take turns.
_TURNS = """\
{%- set system = messages[0].content if messages and messages[0].role == 'system' else none %}
{%- set turns = messages[1:] if system is not none else messages %}
{%- for message in turns %}
    {%- if message.role not in ('user', 'assistant') or (message.role == 'user') != (loop.index0 is even) %}
        {{- raise_exception('user and assistant messages must alternate, after at most one system message') }}
    {%- endif %}
{%- endfor %}
"""

_LLAMA2 = (
    _TURNS
    + """\
{%- for message in turns %}
    {%- if message.role == 'user' %}
        {%- set opening = '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' if loop.first and system is not none else '' %}
        {{- bos_token + '[INST] ' + (opening + message.content).strip() + ' [/INST]' }}
    {%- else %}
        {{- ' ' + message.content.strip() + ' ' + eos_token }}
    {%- endif %}
{%- endfor %}
"""
)

_MISTRAL = (  # as first published with 7B-Instruct-v0.1 and v0.2
    _TURNS
    + """\
{{- bos_token }}
{%- for message in turns %}
    {%- if message.role == 'user' %}
        {%- set opening = system + '\\n\\n' if loop.first and system is not none else '' %}
        {{- '[INST] ' + opening + message.content + ' [/INST]' }}
    {%- else %}
        {{- message.content + eos_token }}
    {%- endif %}
{%- endfor %}
"""
)

_GEMMA = (
    "{%- if messages and messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}\n"
    + _TURNS
    + """\
{{- bos_token }}
{%- for message in turns %}
    {{- '<start_of_turn>' + ('model' if message.role == 'assistant' else 'user') + '\\n' }}
    {{- message.content | trim + '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<start_of_turn>model\\n' }}
{%- endif %}
"""
)

_VICUNA = (
    _TURNS
    + """\
{%- set greeting = "A chat between a curious user and an artificial intelligence assistant. "
    ~ "The assistant gives helpful, detailed, and polite answers to the user's questions." %}
{{- bos_token + (greeting if system is none else system) + ' ' }}
{%- for message in turns %}
    {{- 'USER: ' + message.content + ' ' if message.role == 'user' else 'ASSISTANT: ' + message.content + eos_token }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- 'ASSISTANT:' }}
{%- endif %}
"""
)

_DEEPSEEK = """\
{{- bos_token }}
{%- for message in messages %}
    {%- if message.role == 'system' %}
        {{- message.content }}
    {%- elif message.role == 'user' %}
        {{- '<｜User｜>' + message.content }}
    {%- elif message.role == 'assistant' %}
        {{- '<｜Assistant｜>' + message.content + '<｜end▁of▁sentence｜>' }}
    {%- else %}
        {{- raise_exception('the roles are system, user and assistant, not ' + message.role) }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<｜Assistant｜>' }}
{%- endif %}
"""

_PHI3 = """\
{%- for message in messages %}
    {{- '<|' + message.role + '|>\\n' + message.content + '<|end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|assistant|>\\n' }}
{%- endif %}
"""

_PHI4 = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '<|im_sep|>' + message.content + '<|im_end|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant<|im_sep|>' }}
{%- endif %}
"""

BUILTIN_TEMPLATES: Mapping[str, BuiltinTemplate] = {
    "chatml": BuiltinTemplate(_chatml(), r"chatml|hermes-2|dolphin"),
    "llama-2-chat": BuiltinTemplate(_LLAMA2, r"llama-?2.*chat"),
    "llama-3-instruct": BuiltinTemplate(_LLAMA3, r"llama-?3.*instruct"),
    "mistral": BuiltinTemplate(_MISTRAL, r"(mistral|mixtral).*instruct"),
    "gemma": BuiltinTemplate(_GEMMA, r"gemma.*-it\b"),
    "vicuna": BuiltinTemplate(_VICUNA, r"vicuna"),
    "deepseek": BuiltinTemplate(_DEEPSEEK, r"deepseek-(v2\.5|v3|r1)(?!.*(base|distill))"),
    "qwen": BuiltinTemplate(_chatml("You are a helpful assistant."), r"qwen(1\.5|2)-.*(chat|instruct)"),
    "qwen-2.5": BuiltinTemplate(
        _chatml("You are Qwen, created by Alibaba Cloud. You are a helpful assistant."), r"qwen2\.5-.*instruct"
    ),
    "phi-3": BuiltinTemplate(_PHI3, r"phi-3.*instruct"),
    "phi-4": BuiltinTemplate(_PHI4, r"phi-4\b(?!-mini)"),
}


def builtin_template_name(model_path: str) -> str | None:
    """The built-in template that a model of this path (or hub name) speaks; None if that is not known."""
    path = model_path.lower()
    return next((name for name, builtin in BUILTIN_TEMPLATES.items() if re.search(builtin.models, path)), None)


def load_chat_template(spec: str, special_texts: Mapping[str, str] | None = None) -> ChatTemplate:
    """The template of this name, or the one in the file of this path. Raises TemplateError if there is neither."""
    if spec in BUILTIN_TEMPLATES:
        return ChatTemplate(BUILTIN_TEMPLATES[spec].source, special_texts)
    path = Path(spec)
    if path.is_file():
        return ChatTemplate(path.read_text(encoding="utf-8"), special_texts)
    names = ", ".join(BUILTIN_TEMPLATES)
    raise TemplateError(f"{spec!r} is neither a file nor a built-in chat template; there are {names}")
