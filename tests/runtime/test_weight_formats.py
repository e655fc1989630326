"""Weights that are no safetensors: pickles when asked for, GGUF, and none at all."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter, quants
from safetensors.torch import load_file, save_file
from support.families import family_folder
from support.tiny_models import tiny_checkpoint

from dslc.core.config import EngineConfig
from dslc.core.errors import ConfigError, ModelLoadError
from dslc.runtime.engine import Engine
from dslc.runtime.gguf import KINDS, GgufFile
from dslc.runtime.loader import load_config, load_model
from dslc.runtime.model_config import ModelConfig, recommended_sampling
from dslc.runtime.model_runner import ModelRunner

torch.set_num_threads(1)


def runner_for(path, **options):
    return ModelRunner(EngineConfig.of(model_path=str(path), max_total_tokens=256, max_running_requests=4, **options))


def copy_of(source, target, *, without=()):
    target.mkdir(exist_ok=True)
    for path in source.iterdir():
        if not path.name.endswith(tuple(without)):
            (target / path.name).write_bytes(path.read_bytes())
    return target


def same_weights(model, tensors):
    for name, target in model.checkpoint_targets().items():
        assert torch.equal(target, tensors[name].to(target.dtype)), name


# Pickles


@pytest.mark.parametrize("family", ["qwen2", "gpt2", "gpt-oss"])
@pytest.mark.parametrize("is_zip", [True, False])
def test_a_pickle_is_read_when_asked_for(family, is_zip, tmp_path):
    folder = copy_of(family_folder(family), tmp_path, without=[".safetensors"])
    tensors = load_file(family_folder(family) / "model.safetensors")
    torch.save(tensors, folder / "pytorch_model.bin", _use_new_zipfile_serialization=is_zip)
    (folder / "training_args.bin").write_bytes(b"not weights")
    same_weights(runner_for(folder, load_format="pt").model, tensors)
    with pytest.raises(ModelLoadError, match=r"only 'pytorch_model.bin', a pickle, .* load_format='pt'"):
        runner_for(folder)


class Evil:
    def __reduce__(self):
        return os.system, ("touch dslc-was-here",)


def test_a_pickle_that_would_run_code_is_refused(tmp_path):
    folder = copy_of(family_folder("qwen2"), tmp_path, without=[".safetensors"])
    torch.save({"w": Evil()}, folder / "pytorch_model.bin")
    with pytest.raises(ModelLoadError, match=r"pytorch_model.bin: cannot be read as weights"):
        runner_for(folder, load_format="pt")
    assert not Path("dslc-was-here").exists()


def test_faults_of_pickles(tmp_path):
    folder = copy_of(family_folder("qwen2"), tmp_path, without=[".safetensors"])
    with pytest.raises(ModelLoadError, match=r"no .*bin"):
        runner_for(folder, load_format="pt")
    (folder / "pytorch_model.bin").write_bytes(b"PK\x03\x04nonsense")
    with pytest.raises(ModelLoadError, match="cannot be read as weights"):
        runner_for(folder, load_format="pt")
    torch.save({"epoch": 3}, folder / "pytorch_model.bin")
    with pytest.raises(ModelLoadError, match="holds no table of tensors"):
        runner_for(folder, load_format="pt")
    tensors = load_file(family_folder("qwen2") / "model.safetensors")
    for name in ("pytorch_model-1.bin", "pytorch_model-2.bin"):
        torch.save(tensors, folder / name)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(ModelLoadError, match=r"is also in pytorch_model-1.bin"):
        runner_for(folder, load_format="pt")


# No weights


def test_dummy_weights_need_no_file_and_are_the_same_each_time(tmp_path):
    folder = copy_of(family_folder("qwen3-moe"), tmp_path, without=[".safetensors"])
    first, second = (runner_for(folder, load_format="dummy").model for _ in range(2))
    for (name, a), b in zip(first.named_parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
        if "norm" in name:
            assert bool((a == 1).all())
        else:
            assert 0.01 < float(a.std()) < 0.03, name


def test_an_unknown_format():
    with pytest.raises(ConfigError, match=r"load_format.*must be one of auto, safetensors, pt, gguf, dummy"):
        EngineConfig.of(load_format="npz")


# GGUF

TYPES = {
    "F32": GGMLQuantizationType.F32, "F16": GGMLQuantizationType.F16, "BF16": GGMLQuantizationType.BF16,
    "Q8_0": GGMLQuantizationType.Q8_0, "Q4_0": GGMLQuantizationType.Q4_0, "Q4_K": GGMLQuantizationType.Q4_K,
    "Q6_K": GGMLQuantizationType.Q6_K,
}  # fmt: skip


@pytest.mark.parametrize("number, kind", KINDS.items(), ids=[kind.name for kind in KINDS.values()])
def test_blocks_are_read_as_the_gguf_package_reads_them(number, kind):
    rng = np.random.default_rng(number)
    raw = rng.integers(0, 256, (300, kind.size), dtype=np.uint8)
    raw[:, : min(4, kind.size)] = rng.standard_normal((300, 2)).astype(np.float16).view(np.uint8)[:, : kind.size]
    if kind.name == "Q6_K":
        raw[:, -2:] = rng.standard_normal((300, 1)).astype(np.float16).view(np.uint8)
    expected = quants.dequantize(raw, TYPES[kind.name])
    np.testing.assert_allclose(kind.read(raw), expected, rtol=1e-6, atol=1e-6)


def turned(weight, heads):
    """As llama.cpp's converter stores q and k of a Llama: pairs of rotary dimensions as neighbours."""
    return weight.reshape(heads, 2, -1, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(file, folder, family, kind="F32", leave_out=()):
    """A GGUF file of a tiny checkpoint, written by the gguf package; matrices quantised."""
    config = json.loads((folder / "config.json").read_text())
    tensors = {name: value.numpy() for name, value in load_file(folder / "model.safetensors").items()}
    writer = GGUFWriter(file, family)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_key_length(config.get("head_dim", 16))
    writer.add_eos_token_id(2)
    writer.add_token_list(["a", "b"])
    names = {
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
        "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "model.layers": "blk",
        "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    }  # fmt: skip
    for name, value in tensors.items():
        theirs = name
        for ours, other in names.items():
            theirs = theirs.replace(ours, other)
        if theirs in leave_out:
            continue
        if family == "llama" and ("attn_q." in theirs or "attn_k." in theirs):
            value = turned(value, config["num_attention_heads" if "attn_q." in theirs else "num_key_value_heads"])
        if kind == "F32" or value.ndim == 1:
            writer.add_tensor(theirs, value)
        else:
            writer.add_tensor(theirs, quants.quantize(value, TYPES[kind]), raw_dtype=TYPES[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0"])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_a_gguf_file_alone_gives_the_model(family, kind, tmp_path):
    folder = tiny_checkpoint(family)
    file = tmp_path / "model.gguf"
    tensors = write_gguf(file, folder, family, kind)
    model = runner_for(file).model
    whole = ModelConfig.load(folder)
    for name in ("architecture", "num_layers", "num_kv_heads", "head_dim", "vocab_size", "norm_eps", "context_length"):
        assert getattr(model.config, name) == getattr(whole, name), name
    assert model.config.rope == whole.rope and model.config.eos_ids == (2,)
    for name, target in model.checkpoint_targets().items():
        expected = tensors[name]
        if kind != "F32" and expected.ndim == 2:
            heads = {"q_proj": whole.num_heads, "k_proj": whole.num_kv_heads}.get(name.split(".")[-2], 0)
            is_turned = family == "llama" and heads
            stored = turned(expected, heads) if is_turned else expected
            stored = quants.dequantize(quants.quantize(stored, TYPES[kind]), TYPES[kind])
            expected = (
                stored.reshape(heads, -1, 2, stored.shape[-1]).swapaxes(1, 2).reshape(stored.shape)
                if is_turned
                else stored
            )
        torch.testing.assert_close(target, torch.from_numpy(np.ascontiguousarray(expected)), atol=1e-6, rtol=1e-6)


def test_a_gguf_file_beside_a_config(tmp_path):
    """As a folder, or as a file: config.json is what counts. Safetensors beside it go first."""
    source = tiny_checkpoint("llama")
    folder = copy_of(source, tmp_path, without=[".safetensors"])
    tensors = write_gguf(folder / "model.gguf", source, "llama")
    for path in (folder, folder / "model.gguf"):
        model = runner_for(path).model
        assert model.config.fields == ModelConfig.load(source).fields
        same_weights(model, {name: torch.from_numpy(value) for name, value in tensors.items()})
    (folder / "second.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelLoadError, match=r"holds 2 .*gguf files; give the path of one"):
        runner_for(folder)
    (folder / "model.safetensors").write_bytes((source / "model.safetensors").read_bytes())
    runner_for(folder)


def test_rope_factors_of_llama_3_1(tmp_path):
    source = tiny_checkpoint("llama")
    file = tmp_path / "model.gguf"
    factors = np.linspace(1, 8, 8, dtype=np.float32)
    original = GGUFWriter.write_header_to_file

    def with_factors(self, *args, **kw):
        self.add_tensor("rope_freqs.weight", factors)
        original(self, *args, **kw)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GGUFWriter, "write_header_to_file", with_factors)
        write_gguf(file, source, "llama")
    rope = load_config(tmp_path, gguf=file).rope
    assert rope.kind == "longrope" and rope.short_factor == pytest.approx(tuple(factors)) and rope.attention_factor == 1
    runner_for(file)


def test_faults_of_gguf_files(tmp_path):
    source, file = tiny_checkpoint("qwen2"), tmp_path / "model.gguf"
    write_gguf(file, source, "qwen2")
    whole = file.read_bytes()
    for data, message in (
        (b"PK" + whole[2:], "is no GGUF file"),
        (whole[:40], "is cut short inside its header"),
        (whole[:-100], "is cut short: tensor"),
        (whole[:16] + b"\xff" * 8 + whole[24:], "the file is damaged"),
    ):
        file.write_bytes(data)
        with pytest.raises(ModelLoadError, match=message) as caught:
            runner_for(file)
        assert caught.value.path == str(file)
    write_gguf(file, source, "qwen2", leave_out=["blk.1.ffn_up.weight"])
    with pytest.raises(ModelLoadError, match=r"'model.layers.1.mlp.up_proj.weight'"):
        runner_for(file)
    write_gguf(file, source, "mamba")
    with pytest.raises(ModelLoadError, match=r"architecture 'mamba'; .* put the model's config.json there"):
        runner_for(file)


def test_a_tensor_of_an_unknown_kind(tmp_path):
    writer = GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.add_tensor("w", np.zeros((2, 84), dtype=np.uint8), raw_dtype=GGMLQuantizationType.Q2_K)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ModelLoadError, match=r"'w' is of GGML kind 10; known: F32, F16, Q4_0"):
        GgufFile.open(tmp_path / "x.gguf")


# MXFP4


def in_mxfp4(folder):
    """Replace a gpt-oss checkpoint's experts by random blocks and scales; returns them by name."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    rng = torch.Generator().manual_seed(0)
    packed = {}
    for name in [name for name in tensors if name.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
        experts, inner, outer = tensors.pop(name).shape
        blocks = torch.randint(0, 256, (experts, outer, inner // 32, 16), generator=rng, dtype=torch.uint8)
        scales = torch.randint(120, 128, (experts, outer, inner // 32), generator=rng, dtype=torch.uint8)
        packed[name] = blocks, scales
        tensors[name + "_blocks"], tensors[name + "_scales"] = blocks, scales
    save_file(tensors, path)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    (folder / "config.json").write_text(json.dumps(config))
    return packed


def test_mxfp4_is_dequantised_as_transformers_does(tmp_path):
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    folder = copy_of(family_folder("gpt-oss"), tmp_path)
    packed = in_mxfp4(folder)
    targets = runner_for(folder).model.checkpoint_targets()
    assert len(packed) == 4
    for name, (blocks, scales) in packed.items():
        assert torch.equal(targets[name], convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)), name
    tensors = load_file(folder / "model.safetensors")
    lost = next(name for name in tensors if name.endswith("_scales"))
    del tensors[lost]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ModelLoadError, match=f"'{lost}' do not fit together"):
        runner_for(folder)


# Memory

PEAK = """
import sys, torch
torch.set_num_threads(1)
from pathlib import Path
from dslc.runtime.loader import load_config, load_model
from dslc.runtime.model_config import ModelConfig, recommended_sampling
folder, load_format, gguf = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]) if sys.argv[3] else None
config = load_config(folder, gguf=gguf)
from dslc.runtime.models.registry import model_class
model_class(config.architecture)
def memory(field):  # not ru_maxrss: that counts in what the parent had when it forked
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(field))
open("/proc/self/clear_refs", "w").write("5")
before = memory("VmRSS")
model = load_model(config, load_format=load_format, gguf=gguf)
print(memory("VmHWM") - before)
"""


def large_seer(folder):
    """A checkpoint of Gemma 3 with its encoder of pictures, half of the weights each."""
    import transformers as t

    vision = t.SiglipVisionConfig(
        hidden_size=512, intermediate_size=2048, num_hidden_layers=3, num_attention_heads=4, image_size=64,
        patch_size=8, vision_use_head=False,
    )  # fmt: skip
    text = t.Gemma3TextConfig(
        vocab_size=1024, hidden_size=512, intermediate_size=2048, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=128, bos_token_id=None, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    config = t.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=16, image_token_index=1023)
    t.Gemma3ForConditionalGeneration(config).save_pretrained(folder)


@pytest.mark.parametrize("how", ["safetensors", "gguf", "dummy", "moe", "vision"])
def test_peak_memory_while_loading(how, tmp_path):
    """At most 1.3 times the weights in memory; a mixture's experts are many small tensors that go into large ones."""
    if how == "moe":
        source = family_folder("mixtral")
        fields = json.loads((source / "config.json").read_text())
        fields.update(hidden_size=256, intermediate_size=1024, num_local_experts=16, vocab_size=1024, head_dim=64)
        (tmp_path / "config.json").write_text(json.dumps(fields))
        import transformers

        config = transformers.AutoConfig.from_pretrained(tmp_path)
        transformers.MixtralForCausalLM(config).save_pretrained(tmp_path)
        folder, gguf = tmp_path, ""
    elif how == "vision":
        large_seer(tmp_path)
        folder, gguf = tmp_path, ""
    else:
        folder = tiny_checkpoint("llama", hidden_size=512, intermediate_size=2048, num_hidden_layers=4)
        gguf = str(tmp_path / "model.gguf") if how == "gguf" else ""
        if gguf:
            write_gguf(gguf, folder, "llama")
    load_format = how if how in ("dummy", "safetensors") else "auto"
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    assert size > 50e6
    command = [sys.executable, "-c", PEAK, str(folder), load_format, gguf]
    out = subprocess.run(command, capture_output=True, text=True, check=True)
    print(f"{how}: peak {int(out.stdout) / size:.2f} of the weights")
    assert 0.9 * size < int(out.stdout) <= 1.3 * size


def test_the_loader_reads_what_it_is_told(tmp_path):
    folder = copy_of(family_folder("qwen2"), tmp_path)
    with pytest.raises(ModelLoadError, match=r"holds 0 .*gguf files"):
        runner_for(folder, load_format="gguf")
    assert load_model(load_config(folder), load_format="safetensors") is not None


# What a model recommends


def test_sampling_defaults_of_the_model(tmp_path):
    folder = copy_of(tiny_checkpoint("llama"), tmp_path)
    wanted = {"temperature": 0.3, "top_p": 0.8, "top_k": 7, "repetition_penalty": 1.1}
    (folder / "generation_config.json").write_text(json.dumps({**wanted, "do_sample": True, "eos_token_id": [2]}))
    options = {"model_path": str(folder), "max_total_tokens": 256, "max_running_requests": 4, "random_seed": 1}
    ask = {"max_new_tokens": 12, "seed": 3, "ignore_eos": True}
    with Engine(**options, sampling_defaults="model") as engine:
        by_default = engine.generate("The quick", ask)["output_ids"]
        assert engine.generate("The quick", {**ask, **wanted})["output_ids"] == by_default
        other = engine.generate("The quick", {**ask, "temperature": 1.5})["output_ids"]
        assert engine.generate("The quick", {**ask, **wanted, "temperature": 1.5})["output_ids"] == other
    with Engine(**options) as engine:
        assert engine.generate("The quick", {**ask, **wanted})["output_ids"] == by_default
        assert engine.generate("The quick", ask)["output_ids"] != by_default
    (folder / "generation_config.json").write_text(json.dumps({**wanted, "do_sample": False, "top_k": 0}))
    assert recommended_sampling(folder) == {"temperature": 0.0, "top_p": 0.8, "repetition_penalty": 1.1}
    (folder / "generation_config.json").write_text(json.dumps({"top_p": "high"}))
    with pytest.raises(ModelLoadError, match=r"generation_config.json: field 'top_p' must be a number, not 'high'"):
        Engine(**options, sampling_defaults="model")
