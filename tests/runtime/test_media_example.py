"""The example with pictures, on a tiny model that sees."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import torch
from support.tiny_vision import picture, tiny_vision, vision_greedy

import dslc
from dslc.runtime.model_config import ModelConfig
from dslc.runtime.models.vision.spatial import rope_sections

torch.set_num_threads(1)
EXAMPLE = Path(__file__).parents[2] / "examples" / "picture_comparison.py"


def test_the_example_shares_what_its_questions_have_in_common(tmp_path, capsys):
    spec = importlib.util.spec_from_file_location("picture_comparison", EXAMPLE)
    assert spec is not None and spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    paths = []
    for number in range(2):
        paths.append(str(tmp_path / f"{number}.png"))
        picture(number).save(paths[-1])
    with dslc.Engine(model_path=str(tiny_vision("llava")), max_total_tokens=4096) as engine:
        answers, same = example.main(engine, *paths)
        again, _ = example.main(engine, *paths)
    assert len(answers) == 3 and same in (" yes", " no") and again == answers
    first, second = [line for line in capsys.readouterr().out.splitlines() if "encoded" in line]
    assert first.startswith("2 pictures encoded") and second.startswith("0 pictures encoded")


def test_turns_with_a_picture_by_a_template_that_takes_parts(tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_vision("llava"), folder)
    (folder / "chat_template.jinja").write_text(
        "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
        "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' ' }}"
        "{% endfor %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT: ' }}{% endif %}"
    )

    @dslc.function
    def ask(s, image):
        s += dslc.user("This " + dslc.image(image) + "is")
        s += dslc.assistant(dslc.gen("answer", max_tokens=6, ignore_eos=True))

    wanted, margin = vision_greedy(tiny_vision("llava"), ["USER: This ", picture(5), "is ASSISTANT: "], 6)
    assert margin > 1e-3
    with dslc.Engine(model_path=str(folder), max_total_tokens=4096) as engine:
        state = ask.run(image=picture(5), backend=engine, temperature=0.0)
        assert engine.tokenizer is not None
        assert state["answer"] == engine.tokenizer.decode(wanted)
        assert state.text().startswith("USER: This <image>is ASSISTANT: ")
        assert state.messages()[0] == {"role": "user", "content": "This <image>is"}


def test_fields_that_published_llava_configurations_leave_out_are_those_of_llama(tmp_path):
    """Published LLaVA 1.5 folders name only what differs from a 7B Llama in `text_config`."""
    (tmp_path / "config.json").write_text(
        '{"architectures": ["LlavaForConditionalGeneration"], "model_type": "llava", "image_token_index": 32000,'
        ' "text_config": {"model_type": "llama", "max_position_embeddings": 4096, "rms_norm_eps": 1e-05,'
        ' "torch_dtype": "float16", "vocab_size": 32064}, "vision_config": {"model_type": "clip_vision_model"}}'
    )
    config = ModelConfig.load(tmp_path)
    assert (config.hidden_size, config.num_layers, config.num_heads, config.intermediate_size) == (4096, 32, 32, 11008)


def test_published_qwen2_vl_configurations_are_flat_and_name_their_rope_in_the_old_way(tmp_path):
    (tmp_path / "config.json").write_text(
        '{"architectures": ["Qwen2VLForConditionalGeneration"], "model_type": "qwen2_vl", "hidden_size": 1536,'
        ' "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12, "num_key_value_heads": 2,'
        ' "max_position_embeddings": 32768, "max_window_layers": 28, "sliding_window": 32768, "rope_theta": 1000000.0,'
        ' "use_sliding_window": false, "tie_word_embeddings": true, "vocab_size": 151936, "torch_dtype": "bfloat16",'
        ' "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}, "vision_config": {"depth": 32}}'
    )
    config = ModelConfig.load(tmp_path)
    assert config.rope.kind == "default" and config.rope.theta == 1e6 and config.tie_word_embeddings
    assert config.layer_windows == (None,) * 28
    assert rope_sections(config) == [16, 24, 24]
