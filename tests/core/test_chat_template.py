"""ChatTemplate against transformers' apply_chat_template, its fragments against its own rendering, its sandbox."""

import functools
import itertools
import random

import pytest
from support import tokenizer_kinds as kinds

from dslc.core.errors import TemplateError
from dslc.core.text.load import load_tokenizer
from dslc.core.text.template import ChatTemplate, is_plain_content

# Shapes that published templates have: each is written here in the style of one family.
LLAMA3 = """\
{{- bos_token }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {{- message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}
"""
LLAMA2 = """\
{% if messages[0]['role'] == 'system' %}
    {% set rest = messages[1:] %}{% set system = messages[0]['content'] %}
{% else %}
    {% set rest = messages %}{% set system = false %}
{% endif %}
{% for message in rest %}
    {% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
    {% endif %}
    {% if loop.index0 == 0 and system != false %}
        {% set content = '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' + message['content'] %}
    {% else %}
        {% set content = message['content'] %}
    {% endif %}
    {% if message['role'] == 'user' %}
        {{- bos_token + '[INST] ' + content.strip() + ' [/INST]' -}}
    {% elif message['role'] == 'assistant' %}
        {{- ' '  + content.strip() + ' ' + eos_token -}}
    {% endif %}
{% endfor %}
"""
QWEN3 = """\
{%- set ns = namespace(last_query=-1) %}
{%- for message in messages %}
    {%- if message.role == 'user' %}{% set ns.last_query = loop.index0 %}{% endif %}
{%- endfor %}
{%- if tools %}
    {{- '<|im_start|>system\\n# Tools\\n' }}
    {%- for tool in tools %}{{- '\\n' + (tool | tojson) }}{% endfor %}
    {{- '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {%- set content = message.content.split('</think>')[-1].lstrip('\\n') %}
        {%- set reasoning = message.reasoning_content or '' %}
        {%- if loop.index0 > ns.last_query and (loop.last or reasoning) %}
            {{- '<|im_start|>assistant\\n<think>\\n' + reasoning.strip('\\n') + '\\n</think>\\n\\n' + content }}
        {%- else %}
            {{- '<|im_start|>assistant\\n' + content }}
        {%- endif %}
        {%- for call in message.tool_calls or [] %}
            {{- '\\n<tool_call>\\n' + (call | tojson(indent=2)) + '\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and not enable_thinking %}{{- '<think>\\n\\n</think>\\n\\n' }}{% endif %}
{%- endif %}
"""
GENERATION = (
    "{% for m in messages %}<{{ m.role }}>{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{{ eos_token }}"
    "{% endgeneration %}{% else %}{{ m.content }}{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
GEMMA = (
    "{{ bos_token }}"
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
)
LAST_USER_SYSTEM = (  # the system text moves to the last user message, as Mistral's third template does
    "{% set system = messages[0].content if messages[0].role == 'system' else '' %}{{ bos_token }}"
    "{% for m in messages %}{% if m.role == 'user' %}[INST] {% if loop.last and system %}{{ system }}\n\n{% endif %}"
    "{{ m.content }}[/INST]{% elif m.role == 'assistant' %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
TEMPLATES = {
    "chatml": kinds.CHATML,
    "llama3": LLAMA3,
    "llama2": LLAMA2,
    "qwen3": QWEN3,
    "generation": GENERATION,
    "gemma": GEMMA,
    "mistral": LAST_USER_SYSTEM,
}
SPECIALS = {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>"}
CONTENTS = [
    "Hi",
    " spaced ",
    "",
    "line\n\nline",
    "<think>a</think>\n\nb",
    "{{ 1 }}",
    "ünï 日本 😀",
    "a 'quote' \"b\" <b>&",
]


@functools.cache
def reference(name):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(kinds.folder("gpt2"))
    tokenizer.chat_template = TEMPLATES[name]
    return tokenizer


def both(name, messages, **options):
    """(our rendering or "error", transformers' or "error")"""
    template = ChatTemplate(TEMPLATES[name], SPECIALS)
    try:
        ours = template.render(messages, **options)
    except TemplateError:
        ours = "error"
    try:
        theirs = reference(name).apply_chat_template(messages, tokenize=False, **options)
    except Exception:
        theirs = "error"
    return ours, theirs


@pytest.mark.parametrize("name", TEMPLATES)
def test_renders_as_transformers(name):
    rng = random.Random(3)
    rendered = 0
    for _ in range(150):
        roles = [rng.choice(["system", "user", "assistant"]) for _ in range(rng.randrange(1, 5))]
        if rng.random() < 0.5:
            roles = ["system", "user", "assistant", "user"][rng.randrange(2) :][: len(roles)]
        messages = [{"role": role, "content": rng.choice(CONTENTS)} for role in roles]
        ours, theirs = both(name, messages, add_generation_prompt=rng.random() < 0.5)
        assert ours == theirs
        rendered += ours != "error"
    assert rendered > 40


def test_tools_reasoning_and_variables_reach_the_template():
    tool = {"type": "function", "function": {"name": "f", "description": "é <b>", "parameters": {"type": "object"}}}
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": [1, 2.5, None, True]}}}
    messages = [
        {"role": "user", "content": "q", "name": None},
        {"role": "assistant", "content": "a", "reasoning": "why", "tool_calls": [call]},
    ]
    for options in ({"tools": [tool]}, {"enable_thinking": False, "add_generation_prompt": True}, {"documents": []}):
        ours, theirs = both("qwen3", messages, **options)
        assert ours == theirs != "error"
    several = {"default": "plain", "tool_use": "with tools: {{ tools | length }}"}
    template = ChatTemplate(several)
    assert template.render(messages) == "plain" and template.render(messages, tools=[tool]) == "with tools: 1"
    with pytest.raises(TemplateError, match="none is the default; it has other"):
        ChatTemplate({"other": "x"}).render(messages)


def concatenated(template, roles, contents, plain):
    parts = [template.fragments(tuple(roles[: i + 1]), plain) for i in range(len(roles))]
    if None in parts:
        return None
    return "".join(prefix + content + suffix for (prefix, suffix), content in zip(parts, contents, strict=True))


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("name", TEMPLATES)
def test_fragments_around_any_contents_make_the_rendering(name, plain):
    template = ChatTemplate(TEMPLATES[name], SPECIALS)
    rng = random.Random(4)
    contents = [c for c in (*CONTENTS, "a\n b", "x " * 40 + "y") if is_plain_content(c) or not plain]
    found = 0
    for length in (1, 2, 3, 4):
        for roles in itertools.product(["system", "user", "assistant"], repeat=length):
            if template.fragments(roles, plain) is None:
                assert template.explain(roles, plain)
                continue
            assert template.explain(roles, plain) == ""
            if roles == ("system",) and name in ("llama2", "mistral"):
                continue  # only shows with the user message
            found += 1
            for _ in range(3):
                texts = [rng.choice(contents) for _ in roles]
                messages = [{"role": r, "content": t} for r, t in zip(roles, texts, strict=True)]
                whole = concatenated(template, roles, texts, plain)
                assert whole == template.render(messages)
                if roles[-1] == "assistant" and length > 1:
                    opened = template.render(messages[:-1], add_generation_prompt=True)
                    prefix, suffix = template.fragments(roles, plain)
                    assert whole == opened + texts[-1] + suffix and opened.endswith(prefix)
    expected = {"chatml": 120, "generation": 120, "llama3": 120 if plain else 0, "gemma": 26 if plain else 0}
    assert name not in expected or found >= expected[name]


def test_which_templates_pass():
    def passes(name, *roles, plain=True):
        return ChatTemplate(TEMPLATES[name], SPECIALS).fragments(roles, plain) is not None

    chat = ("system", "user", "assistant", "user", "assistant")
    assert passes("chatml", *chat, plain=False)
    assert passes("llama3", *chat) and not passes("llama3", *chat, plain=False)
    assert passes("llama2", "system", "user") and not passes("llama2", "system", "assistant")
    assert not passes("llama2", *chat)  # its generation prompt lacks the space that its assistant messages start with
    assert passes("gemma", *chat[1:]) and not passes("gemma", "system", "user")
    assert not passes("qwen3", "user", "assistant") and passes("qwen3", "system", "user")
    assert passes("mistral", "system", "user") and not passes("mistral", *chat)


def test_append_fragments_of_templates_that_do_not_pass():
    def turns(name, *roles):
        template = ChatTemplate(TEMPLATES[name], SPECIALS)
        return [template.append_fragments(roles[: i + 1]) for i in range(len(roles))]

    bos, eos = SPECIALS.values()
    assert (
        turns("qwen3", "user", "assistant", "user", "assistant")
        == [
            ("<|im_start|>user\n", "<|im_end|>\n"),
            ("<|im_start|>assistant\n", "<|im_end|>\n"),
        ]
        * 2
    )
    assert turns("llama2", "system", "user", "assistant", "user") == [
        (f"{bos}[INST] <<SYS>>\n", "\n<</SYS>>\n\n"),
        ("", " [/INST]"),
        ("", f" {eos}"),
        (f"{bos}[INST] ", " [/INST]"),
    ]
    assert turns("mistral", "system", "user", "assistant", "user") == [
        (f"{bos}[INST] ", "\n\n"),
        ("", "[/INST]"),
        ("", eos),
        ("[INST] ", "[/INST]"),
    ]
    assert turns("llama3", "user", "assistant") == turns("llama3", "user", "assistant", "user")[:2]
    with pytest.raises(TemplateError, match=r"cannot render a user / user conversation: .*roles must alternate"):
        turns("llama2", "user", "user")


def test_explain_says_what_differs():
    def why(name, *roles, plain=True):
        return ChatTemplate(TEMPLATES[name], SPECIALS).explain(roles, plain)

    assert "System role not supported" in why("gemma", "system")
    assert "white space" in why("llama3", "user", plain=False)
    assert "<think>" in why("qwen3", "user", "assistant")
    assert "roles must alternate" in why("llama2", "user", "user")
    assert "once a" in why("mistral", *("system", "user", "assistant", "user"))


def test_templates_come_from_the_model_folder(tmp_path):
    import json
    import shutil

    shutil.copytree(kinds.folder("gpt2"), tmp_path / "m")
    (tmp_path / "m" / "chat_template.jinja").write_text("file {{ eos_token }}", encoding="utf-8")
    tokenizer = load_tokenizer(tmp_path / "m")
    assert tokenizer.chat_template.render([{"role": "user", "content": "x"}]) == "file <|im_end|>"
    (tmp_path / "m" / "chat_template.jinja").unlink()
    config = json.loads((tmp_path / "m" / "tokenizer_config.json").read_text())
    config["chat_template"] = [{"name": "default", "template": "one"}, {"name": "rag", "template": "two"}]
    (tmp_path / "m" / "tokenizer_config.json").write_text(json.dumps(config))
    assert load_tokenizer(tmp_path / "m").chat_template.sources == {"default": "one", "rag": "two"}
    del config["chat_template"]
    (tmp_path / "m" / "tokenizer_config.json").write_text(json.dumps(config))
    assert load_tokenizer(tmp_path / "m").chat_template is None


@pytest.mark.parametrize(
    "source, complaint",
    [
        ("{% for %}", "syntax error in line 1"),
        ("{{ raise_exception('no such role') }}", "refuses these messages: no such role"),
        ("{{ messages[0].nope.nope }}", "has no attribute"),
        ("{{ 'a' + 1 }}", "failed on these messages: TypeError"),
        ("{{ ''.__class__.__mro__ }}", "unsafe|refused"),
        ("{{ messages.append(1) }}", "refused by the sandbox"),
        ("{% set ns = namespace(_x=1) %}", "underscore"),
        ("{% for i in range(1000000000) %}{% endfor %}", "too big|range"),
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "loop steps"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "Recursion"),
        ("{{ 'ab' * 1000000000 }}", "characters of text"),
        ("{{ 9 ** (9 ** (9 ** 9)) }}", "characters of text"),
        *((f"{{% set n = namespace(x='ab') %}}{{% for i in range(60) %}}{growth}{{% endfor %}}", "characters of text")
          for growth in (
            "{% set n.x = n.x ~ n.x %}",
            "{% set n.x = n.x + n.x %}",
            "{% set n.x %}{{ n.x }}{{ n.x }}{% endset %}",
            "{% set n.x = n.x.replace('a', n.x) %}",
            "{% set n.x = n.x | replace('a', n.x) %}",
            "{% set n.x = [n.x, n.x] | join %}",
            "{% set n.x = n.x.join([n.x, n.x]) %}",
            "{% set n.x = '%s%s' % (n.x, n.x) %}",
            "{% set n.x = '{0}{0}'.format(n.x) %}",
            "{% set n.x = [n.x, n.x] | string %}",
            "{% set n.x = [n.x, n.x] | tojson %}",
            "{% set n.x = [n.x, n.x] | map('upper') | join %}",
        )),
        ("{{ 'a'.ljust(1000000000) }}", "above 1000000"),
        ("{{ 'a' | center(1000000000) }}", "above 1000000"),
        ("{{ 'a\nb' | indent(1000000000) }}", "above 1000000"),
        ("{{ '%1000000000d' | format(1) }}", "width above"),
        ("{{ '%*d' % (1000000000, 1) }}", "width above"),
        ("{{ '{:1000000000}'.format(1) }}", "width above"),
        ("{{ '{:{}}'.format(1, 1000000000) }}", "above 1000000"),
    ],
)  # fmt: skip
def test_bad_templates_are_refused_quickly_and_by_name(source, complaint):
    template = ChatTemplate(source)
    with pytest.raises(TemplateError, match=complaint):
        template.render([{"role": "user", "content": "x"}])
    assert ChatTemplate("{{ messages[0].content }}").render([{"role": "user", "content": "x"}]) == "x"


def test_messages_are_data():
    class Sneaky(str):
        def strip(self):
            raise AssertionError("a method of the caller's class was called")

    class Thing:
        secret = "s"

    template = ChatTemplate("{{ messages[0].content.strip() }}{{ messages[0].thing.secret }}{{ messages[0].thing }}")
    assert template.render([{"role": "user", "content": Sneaky(" x "), "thing": Thing()}]) == "x<Thing>"
    with pytest.raises(TemplateError, match="needs at least one"):
        template.render([])
    with pytest.raises(TemplateError, match="must be a mapping"):
        template.render(["hello"])
    with pytest.raises(TemplateError, match="JSON schema"):
        template.render([{"role": "user", "content": "x"}], tools=[print])
