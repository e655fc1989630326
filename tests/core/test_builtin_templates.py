"""The built-in chat templates against strings rendered with the models' own published templates."""

import shutil

import pytest
from support import tokenizer_kinds as kinds

from dslc.core.errors import TemplateError
from dslc.core.text.builtin_templates import BUILTIN_TEMPLATES, builtin_template_name, load_chat_template
from dslc.core.text.load import load_tokenizer

SPECIALS = {
    "llama-3-instruct": {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
    "gemma": {"bos_token": "<bos>", "eos_token": "<eos>"},
    "deepseek": {"bos_token": "<｜begin▁of▁sentence｜>", "eos_token": "<｜end▁of▁sentence｜>"},
}
CONVERSATION = [
    {"role": "system", "content": "You are a pirate"},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hi there"},
    {"role": "user", "content": "Who are you"},
    {"role": "assistant", "content": "I am a pirate"},
    {"role": "user", "content": "Another question"},
]
CHATML = (
    "<|im_start|>system\nYou are a pirate<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    "Hi there<|im_end|>\n<|im_start|>user\nWho are you<|im_end|>\n<|im_start|>assistant\nI am a pirate<|im_end|>\n"
    "<|im_start|>user\nAnother question<|im_end|>\n<|im_start|>assistant\n"
)
GOLDEN = {
    "chatml": CHATML,
    "qwen": CHATML,
    "qwen-2.5": CHATML,
    "llama-2-chat": "<s>[INST] <<SYS>>\nYou are a pirate\n<</SYS>>\n\nHello [/INST] Hi there </s>"
    "<s>[INST] Who are you [/INST] I am a pirate </s><s>[INST] Another question [/INST]",
    "llama-3-instruct": "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nYou are a pirate<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nHello<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    "Hi there<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nWho are you<|eot_id|><|start_header_id|>assistant"
    "<|end_header_id|>\n\nI am a pirate<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nAnother question<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "mistral": "<s>[INST] You are a pirate\n\nHello [/INST]Hi there</s>[INST] Who are you [/INST]I am a pirate</s>"
    "[INST] Another question [/INST]",
    "gemma": "<bos><start_of_turn>user\nHello<end_of_turn>\n<start_of_turn>model\nHi there<end_of_turn>\n"
    "<start_of_turn>user\nWho are you<end_of_turn>\n<start_of_turn>model\nI am a pirate<end_of_turn>\n"
    "<start_of_turn>user\nAnother question<end_of_turn>\n<start_of_turn>model\n",
    "vicuna": "<s>You are a pirate USER: Hello ASSISTANT: Hi there</s>USER: Who are you ASSISTANT: I am a pirate</s>"
    "USER: Another question ASSISTANT:",
    "deepseek": "<｜begin▁of▁sentence｜>You are a pirate<｜User｜>Hello<｜Assistant｜>Hi there<｜end▁of▁sentence｜>"
    "<｜User｜>Who are you<｜Assistant｜>I am a pirate<｜end▁of▁sentence｜><｜User｜>Another question<｜Assistant｜>",
    "phi-3": "<|system|>\nYou are a pirate<|end|>\n<|user|>\nHello<|end|>\n<|assistant|>\nHi there<|end|>\n<|user|>\n"
    "Who are you<|end|>\n<|assistant|>\nI am a pirate<|end|>\n<|user|>\nAnother question<|end|>\n<|assistant|>\n",
    "phi-4": "<|im_start|>system<|im_sep|>You are a pirate<|im_end|><|im_start|>user<|im_sep|>Hello<|im_end|>"
    "<|im_start|>assistant<|im_sep|>Hi there<|im_end|><|im_start|>user<|im_sep|>Who are you<|im_end|>"
    "<|im_start|>assistant<|im_sep|>I am a pirate<|im_end|><|im_start|>user<|im_sep|>Another question<|im_end|>"
    "<|im_start|>assistant<|im_sep|>",
}


def template_of(name):
    return load_chat_template(name, SPECIALS.get(name, {"bos_token": "<s>", "eos_token": "</s>"}))


@pytest.mark.parametrize("name", BUILTIN_TEMPLATES)
def test_renders_its_golden_string(name):
    messages = CONVERSATION[1:] if name == "gemma" else CONVERSATION
    assert template_of(name).render(messages, add_generation_prompt=True) == GOLDEN[name]


def test_default_system_messages():
    hello = [{"role": "user", "content": "Hello"}]
    assert template_of("qwen").render(hello).startswith("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n")
    assert (
        template_of("qwen-2.5").render(hello).startswith("<|im_start|>system\nYou are Qwen, created by Alibaba Cloud.")
    )
    assert template_of("vicuna").render(hello) == (
        "<s>A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
        "detailed, and polite answers to the user's questions. USER: Hello "
    )
    assert template_of("gemma").render(hello) == "<bos><start_of_turn>user\nHello<end_of_turn>\n"


@pytest.mark.parametrize("name", ["llama-2-chat", "mistral", "gemma", "vicuna"])
def test_turns_must_alternate(name):
    for roles in (["user", "user"], ["assistant"], ["user", "assistant", "assistant"], ["user", "tool"]):
        with pytest.raises(TemplateError, match="must alternate"):
            template_of(name).render([{"role": role, "content": "x"} for role in roles])


@pytest.mark.parametrize("name", [n for n in BUILTIN_TEMPLATES if n not in ("llama-2-chat", "vicuna")])
def test_fragments_exist_for_chats(name):
    template = template_of(name)
    roles = ("user", "assistant", "user", "assistant", "user")
    assert template.fragments(roles, plain=True) is not None, template.explain(roles, plain=True)


@pytest.mark.parametrize(
    "path, name",
    [
        ("meta-llama/Llama-2-7b-chat-hf", "llama-2-chat"),
        ("meta-llama/Llama-2-7b-hf", None),
        ("/models/Meta-Llama-3-8B-Instruct", "llama-3-instruct"),
        ("meta-llama/Llama-3.2-1B", None),
        ("mistralai/Mixtral-8x7B-Instruct-v0.1", "mistral"),
        ("google/gemma-2-2b-it", "gemma"),
        ("google/gemma-2-2b", None),
        ("lmsys/vicuna-7b-v1.5", "vicuna"),
        ("deepseek-ai/DeepSeek-V3", "deepseek"),
        ("deepseek-ai/DeepSeek-V3-Base", None),
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", None),
        ("Qwen/Qwen1.5-0.5B-Chat", "qwen"),
        ("Qwen/Qwen2-7B-Instruct", "qwen"),
        ("Qwen/Qwen2.5-7B-Instruct", "qwen-2.5"),
        ("Qwen/Qwen2.5-7B", None),
        ("microsoft/Phi-3-mini-4k-instruct", "phi-3"),
        ("microsoft/phi-4", "phi-4"),
        ("NousResearch/Hermes-2-Pro-Mistral-7B", "chatml"),
    ],
)
def test_models_are_known_by_their_path(path, name):
    assert builtin_template_name(path) == name


def test_a_model_without_a_template_gets_one_by_name(tmp_path):
    shutil.copytree(kinds.folder("llama2"), tmp_path / "Llama-2-7b-chat-hf")
    assert load_tokenizer(kinds.folder("llama2")).chat_template is None
    hello = [{"role": "user", "content": "Hello"}]
    assert load_tokenizer(tmp_path / "Llama-2-7b-chat-hf").chat_template.render(hello) == "<s>[INST] Hello [/INST]"
    chosen = load_tokenizer(kinds.folder("llama2"), chat_template="chatml").chat_template
    assert chosen.render(hello) == "<|im_start|>user\nHello<|im_end|>\n"
    (tmp_path / "mine.jinja").write_text("{{ messages[0].content }}{{ eos_token }}", encoding="utf-8")
    mine = load_tokenizer(kinds.folder("gpt2"), chat_template=str(tmp_path / "mine.jinja")).chat_template
    assert mine.render(hello) == "Hello<|im_end|>"
    with pytest.raises(
        TemplateError, match="'nope' is neither a file nor a built-in chat template; there are chatml, "
    ):
        load_tokenizer(kinds.folder("gpt2"), chat_template="nope")
