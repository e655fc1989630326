"""config.json: what transformers writes, what older checkpoints hold, and what is wrong with a bad one."""

import json

import pytest
import torch
from support.tiny_models import tiny_config

from dslc.core.errors import ModelLoadError
from dslc.runtime.layers.rotary import RotaryTable, inverse_frequencies, rotate
from dslc.runtime.model_config import ModelConfig

torch.set_num_threads(1)

BASE = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": 3, "hidden_size": 64,
    "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 512,
    "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "hidden_act": "silu", "torch_dtype": "bfloat16",
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def load(folder, generation=None, context_length=None, overrides=None, **changes):
    fields = {**BASE, **changes}
    fields = {name: value for name, value in fields.items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(fields))
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return ModelConfig.load(folder, context_length=context_length, overrides=overrides)


def test_an_old_llama(tmp_path):
    config = load(tmp_path, rope_theta=500000.0, generation={"eos_token_id": [2, 7]})
    assert (config.num_layers, config.head_dim, config.num_kv_heads, config.context_length) == (3, 16, 2, 4096)
    assert (config.rope.kind, config.rope.theta, config.rope.rotary_dim) == ("default", 500000.0, 16)
    assert (config.dtype, config.eos_ids, config.bos_id, config.pad_id) == ("bfloat16", (2, 7), 1, None)
    assert config.layer_windows == (None,) * 3 and not config.attention_bias and not config.tie_word_embeddings
    assert config.fields["hidden_act"] == "silu"


def test_defaults_of_missing_fields(tmp_path):
    config = load(tmp_path, num_key_value_heads=..., torch_dtype=..., eos_token_id=..., rms_norm_eps=None)
    assert (config.num_kv_heads, config.dtype, config.eos_ids, config.norm_eps) == (4, "float32", (), 1e-6)


LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 512}


@pytest.mark.parametrize(
    "rope, expected",  # (kind, factor, context length)
    [
        ({}, ("default", 1.0, 4096)),
        ({"rope_scaling": None}, ("default", 1.0, 4096)),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, ("linear", 2.0, 8192)),
        ({"rope_scaling": {"rope_type": "linear", "factor": 4}}, ("linear", 4.0, 16384)),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, ("dynamic", 2.0, 4096)),
        ({"rope_scaling": {"rope_type": "llama3", **LLAMA3}}, ("llama3", 8.0, 4096)),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, **LLAMA3}}, ("llama3", 8.0, 4096)),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, ("yarn", 4.0, 16384)),
        (
            {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}},
            ("yarn", 4.0, 4096),
        ),
        ({"rope_scaling": {"type": "yarn", "original_max_position_embeddings": 1024}}, ("yarn", 4.0, 4096)),
    ],
)
def test_rope_and_context_length(tmp_path, rope, expected):
    config = load(tmp_path, **rope)
    assert (config.rope.kind, config.rope.factor, config.context_length) == expected


@pytest.mark.parametrize("wished, allowed", [(100, True), (4096, True), (4097, False)])
def test_a_context_length_that_is_asked_for(tmp_path, wished, allowed):
    if allowed:
        assert load(tmp_path, context_length=wished).context_length == wished
    else:
        with pytest.raises(ModelLoadError, match=r"context_length=4097 .* 4096 positions"):
            load(tmp_path, context_length=wished)


def test_dynamic_rope_may_be_asked_for_more(tmp_path):
    scaling = {"type": "dynamic", "factor": 2.0}
    assert load(tmp_path, context_length=8192, rope_scaling=scaling).context_length == 8192
    with pytest.raises(ModelLoadError, match="8192 positions"):
        load(tmp_path, context_length=8193, rope_scaling=scaling)


@pytest.mark.parametrize(
    "changes, windows",
    [
        ({"model_type": "mistral", "sliding_window": 9}, (9, 9, 9)),
        ({"model_type": "mistral", "sliding_window": None}, (None,) * 3),
        ({"model_type": "llama", "sliding_window": 9}, (None,) * 3),
        (
            {"model_type": "qwen2", "sliding_window": 9, "use_sliding_window": False, "max_window_layers": 0},
            (None,) * 3,
        ),
        (
            {"model_type": "qwen2", "sliding_window": 9, "use_sliding_window": True, "max_window_layers": 1},
            (None, 9, 9),
        ),
        (
            {"sliding_window": 9, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
            (9, None, 9),
        ),
        ({"sliding_window": None, "layer_types": ["full_attention"] * 3}, (None,) * 3),
    ],
)
def test_windows(tmp_path, changes, windows):
    assert load(tmp_path, **changes).layer_windows == windows


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_what_transformers_writes(tmp_path, family):
    theirs = tiny_config(family)
    theirs.architectures = [f"{family.capitalize()}ForCausalLM"]
    theirs.save_pretrained(tmp_path)
    ours = ModelConfig.load(tmp_path)
    assert ours.model_type == family and ours.architecture == theirs.architectures[0]
    assert ours.head_dim == (getattr(theirs, "head_dim", None) or 16)
    assert ours.num_kv_heads == 2 and ours.context_length == 512 and ours.eos_ids == (2,)
    assert ours.layer_windows == ((24, 24) if family == "mistral" else (None, None))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"hidden_size": ...}, "field 'hidden_size' is missing"),
        ({"num_hidden_layers": "3"}, "field 'num_hidden_layers' must be a positive integer, not '3'"),
        ({"num_hidden_layers": True}, "field 'num_hidden_layers' must be a positive integer, not True"),
        ({"vocab_size": 0}, "field 'vocab_size' must be a positive integer, not 0"),
        ({"num_key_value_heads": 3}, r"field 'num_key_value_heads' \(3\) must divide num_attention_heads \(4\)"),
        ({"hidden_size": 66}, r"field 'hidden_size' \(66\) must be a multiple"),
        ({"hidden_act": "swish9"}, "field 'hidden_act' must be one of silu, .*relu2, not 'swish9'"),
        ({"head_dim": 15}, "field 'head_dim' rotates 15 of 15 dimensions"),
        ({"architectures": []}, "field 'architectures' must be a list"),
        ({"architectures": ...}, "field 'architectures' is missing"),
        ({"rms_norm_eps": -1}, "field 'rms_norm_eps' must be a number above 0, not -1"),
        ({"tie_word_embeddings": "yes"}, "field 'tie_word_embeddings' must be true or false, not 'yes'"),
        ({"torch_dtype": "int8"}, "field 'dtype' must be float32, float16 or bfloat16, not 'int8'"),
        ({"eos_token_id": 512}, "field 'eos_token_id' must hold ids below vocab_size=512, not 512"),
        ({"bos_token_id": 1.5}, "field 'bos_token_id' must be a token id below"),
        ({"max_position_embeddings": ...}, "field 'max_position_embeddings' is missing"),
        ({"rope_scaling": []}, "field 'rope_scaling' must be an object"),
        ({"rope_scaling": {"type": "wave"}}, "field 'rope_scaling.rope_type' must be one of default, linear"),
        ({"rope_scaling": {"type": {}}}, "field 'rope_scaling.rope_type' must be one of default, linear"),
        ({"rope_scaling": {"type": "linear"}}, "field 'rope_scaling.factor' is missing"),
        (
            {"rope_parameters": {"rope_type": "linear", "factor": "2"}},
            "field 'rope_parameters.factor' must be a number",
        ),
        ({"rope_scaling": {**LLAMA3, "type": "llama3", "low_freq_factor": 9.0}}, "must be above low_freq_factor"),
        ({"rope_theta": 0}, "field 'rope_theta' must be a number above 0"),
        ({"sliding_window": -3, "model_type": "mistral"}, "field 'sliding_window' must be a positive integer, not -3"),
        ({"sliding_window": 3, "layer_types": ["full_attention"]}, "field 'layer_types' must list 3 of"),
        ({"quantization_config": {"bits": 4}}, "field 'quantization_config' is set"),
    ],
)
def test_a_wrong_field_is_named_with_its_file(tmp_path, changes, message):
    with pytest.raises(ModelLoadError, match=message) as caught:
        load(tmp_path, **changes)
    assert caught.value.path == str(tmp_path / "config.json")


def test_a_config_that_is_no_json_or_not_there(tmp_path):
    with pytest.raises(ModelLoadError, match="no such file"):
        ModelConfig.load(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelLoadError, match="cannot be read as JSON"):
        ModelConfig.load(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ModelLoadError, match="must hold a JSON object, not list"):
        ModelConfig.load(tmp_path)


def test_a_bad_generation_config_is_named(tmp_path):
    with pytest.raises(ModelLoadError, match="eos_token_id") as caught:
        load(tmp_path, generation={"eos_token_id": [2, 99999]})
    assert caught.value.path.endswith("generation_config.json")


def test_overrides_win(tmp_path):
    config = load(tmp_path, overrides={"max_position_embeddings": 128, "rope_scaling": {"type": "linear", "factor": 2}})
    assert config.context_length == 256


YARN4 = {"factor": 4.0, "original_max_position_embeddings": 256}
ROPES = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 2.5},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "llama3": {"rope_type": "llama3", **LLAMA3},
    "yarn": {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 512},
    "yarn-betas": {"rope_type": "yarn", **YARN4, "beta_fast": 20, "beta_slow": 2, "truncate": False},
    "yarn-mscale": {"rope_type": "yarn", **YARN4, "mscale": 0.7, "mscale_all_dim": 1.2},
    "longrope": {"rope_type": "longrope", "original_max_position_embeddings": 512},
    "longrope-long": {"rope_type": "longrope", "original_max_position_embeddings": 128},
    "yarn-given": {"rope_type": "yarn", **YARN4, "attention_factor": 1.5},
}


@pytest.mark.parametrize("kind", ROPES)
@pytest.mark.parametrize("head_dim, theta", [(16, 1e4), (128, 5e5)])
def test_cos_and_sin_equal_transformers(tmp_path, kind, head_dim, theta):
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

    rope = {**ROPES[kind], "rope_theta": theta}
    if rope["rope_type"] == "longrope":
        rope["short_factor"] = [1.0 + 0.1 * i for i in range(head_dim // 2)]
        rope["long_factor"] = [2.0 + 0.5 * i for i in range(head_dim // 2)]
    theirs = tiny_config("llama", head_dim=head_dim, rope_parameters=rope)
    theirs.architectures = ["LlamaForCausalLM"]
    theirs.save_pretrained(tmp_path)
    ours = ModelConfig.load(tmp_path, context_length=512)
    if kind != "default":
        freq, scale = ROPE_INIT_FUNCTIONS[kind.partition("-")[0]](theirs, seq_len=512)
        torch.testing.assert_close(inverse_frequencies(ours.rope, 512), freq, rtol=1e-6, atol=0)
        assert ours.rope.attention_factor == pytest.approx(scale)
    positions = torch.tensor([0, 1, 5, 100, 511])
    cos, sin = RotaryTable(ours.rope, 512).at(positions, 512)
    x = torch.randn(5, 3, head_dim)
    expected_cos, expected_sin = LlamaRotaryEmbedding(theirs)(x, positions[None])
    # angles reach hundreds of radians: a last-bit difference of the frequency shows in the fifth decimal
    torch.testing.assert_close(torch.cat([cos, cos], -1)[:, 0], expected_cos[0], atol=1e-4, rtol=0)
    torch.testing.assert_close(torch.cat([sin, sin], -1)[:, 0], expected_sin[0], atol=1e-4, rtol=0)
    turned, _ = apply_rotary_pos_emb(x[None], x[None], expected_cos, expected_sin, unsqueeze_dim=2)
    torch.testing.assert_close(rotate(x, cos, sin), turned[0], atol=1e-3, rtol=0)


def test_dynamic_rope_beyond_its_trained_length_equals_transformers_at_that_length(tmp_path):
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    theirs = tiny_config("llama", rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0})
    theirs.architectures = ["LlamaForCausalLM"]
    theirs.save_pretrained(tmp_path)
    ours = ModelConfig.load(tmp_path, context_length=900)
    freq, _ = ROPE_INIT_FUNCTIONS["dynamic"](theirs, seq_len=900)
    torch.testing.assert_close(inverse_frequencies(ours.rope, 900), freq, rtol=1e-5, atol=0)


def test_an_angle_has_the_same_bits_however_the_table_grew(tmp_path):
    config = load(tmp_path)
    small, large = RotaryTable(config.rope, 4096), RotaryTable(config.rope, 4096)
    positions = torch.arange(1500)
    for end in (3, 900, 1024, 1025):
        small.at(positions[:1], end)
    for a, b in zip(small.at(positions, 1500), large.at(positions, 4096), strict=True):
        assert torch.equal(a, b)


def test_dimensions_that_are_not_rotated_go_through(tmp_path):
    config = load(tmp_path, partial_rotary_factor=0.5)
    assert config.rope.rotary_dim == 8
    cos, sin = RotaryTable(config.rope, 4096).at(torch.tensor([3]), 4)
    x = torch.randn(1, 2, 16)
    turned = rotate(x, cos, sin)
    assert torch.equal(turned[..., 8:], x[..., 8:]) and not torch.equal(turned[..., :8], x[..., :8])
