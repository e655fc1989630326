"""Chat templates of models that see: contents are lists of parts there; turns of text must come out all the same."""

from __future__ import annotations

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from dslc.core.text.template import ChatTemplate

# In the manner of LLaVA 1.5 and Qwen2-VL: the first loops over parts alone, the second takes text too.
PARTS = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' ' }}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT: ' }}{% endif %}"
)
BOTH = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n"
    "{% else %}{% for content in message['content'] %}{% if content['type'] == 'text' %}{{ content['text'] }}"
    "{% endif %}{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TALK = [("user", "What is it?"), ("assistant", "A cat."), ("user", "Which\none?")]


@pytest.mark.parametrize(("source", "takes_parts"), [(PARTS, True), (BOTH, False)])
def test_text_turns_equal_those_of_transformers(source, takes_parts):
    template = ChatTemplate(source)
    assert template.takes_parts == takes_parts
    for prompt in (False, True):
        as_parts = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in TALK]
        wanted = render_jinja_template([as_parts], chat_template=source, add_generation_prompt=prompt)[0][0]
        found = template.render([{"role": role, "content": text} for role, text in TALK], add_generation_prompt=prompt)
        assert found == wanted
        assert template.render(as_parts, add_generation_prompt=prompt) == wanted


@pytest.mark.parametrize("source", [PARTS, BOTH])
def test_turns_can_be_appended_one_by_one(source):
    template = ChatTemplate(source)
    roles = tuple(role for role, _ in TALK)
    text = ""
    for number, (_, content) in enumerate(TALK):
        fragments = template.fragments(roles[: number + 1])
        assert fragments is not None, template.explain(roles[: number + 1])
        text += fragments[0] + content + fragments[1]
    assert text == template.render([{"role": role, "content": content} for role, content in TALK])
