"""Loading: every tensor once, from whole and sharded files, and each damage named with its file."""

import itertools
import json
import struct
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.families import family_folder
from support.tiny_models import tiny_checkpoint

from dslc.core.errors import ModelLoadError
from dslc.runtime import loader
from dslc.runtime.checkpoint import checkpoint_tensors, read_header
from dslc.runtime.loader import load_model, model_folder
from dslc.runtime.model_config import ModelConfig
from dslc.runtime.models import registry

torch.set_num_threads(1)


@pytest.fixture
def folder(tmp_path):
    """A copy of a tiny checkpoint to damage."""
    return copy_of(tiny_checkpoint("qwen2"), tmp_path / "model")


def copy_of(source, target):
    target.mkdir()
    for path in source.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


def change(folder, edit):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path)


def load(folder, **options):
    return load_model(ModelConfig.load(folder), **options)


def expect(message, folder, file="model.safetensors"):
    with pytest.raises(ModelLoadError, match=message) as caught:
        load(folder)
    assert Path(caught.value.path).name == (file or folder.name)


@pytest.mark.parametrize("family, options", [("llama", {}), ("llama", {"tie_word_embeddings": True}), ("qwen3", {})])
@pytest.mark.parametrize("shard", ["5GB", "60KB"])
def test_every_tensor_goes_to_its_place_once(family, options, shard, monkeypatch):
    folder = tiny_checkpoint(family, max_shard_size=shard, **options)
    files = list(folder.glob("*.safetensors"))
    assert (len(files) > 2) == (shard == "60KB")
    touched = []
    real = loader.read_into

    def read_into(stream, tensor, target):
        touched.append((tensor.name, target))
        real(stream, tensor, target)

    monkeypatch.setattr(loader, "read_into", read_into)
    model = load(folder)
    stored = {name: value for file in files for name, value in load_file(file).items()}
    assert sorted(name for name, _ in touched) == sorted(stored)
    for name, target in touched:
        assert torch.equal(target, stored[name])
    spans = sorted((t.data_ptr(), t.data_ptr() + t.nbytes) for _, t in touched)
    assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(spans))  # no element twice
    params = {id(p): p for p in model.parameters()}
    assert sum(p.nbytes for p in params.values()) == sum(end - begin for begin, end in spans)  # none left out
    assert not any(p.is_meta for p in params.values())


@pytest.mark.parametrize("weights, acts", [("bfloat16", "float32"), ("float32", "float32"), ("bfloat16", "bfloat16")])
def test_dtypes_of_weights_and_the_rest(weights, acts):
    folder = tiny_checkpoint("qwen3", dtype="bfloat16")
    model = load(folder, weight_dtype=getattr(torch, weights), act_dtype=getattr(torch, acts))
    stored = load_file(folder / "model.safetensors")
    assert model.model.embed_tokens.weight.dtype == getattr(torch, weights)
    assert model.model.norm.weight.dtype == getattr(torch, acts)
    got = model.model.layers[1].self_attn.qkv_proj.weight[:128]
    assert torch.equal(got, stored["model.layers.1.self_attn.q_proj.weight"].to(getattr(torch, weights)))


def test_a_tied_head_may_be_stored_as_well(tmp_path):
    folder = copy_of(tiny_checkpoint("llama", tie_word_embeddings=True), tmp_path / "model")
    change(folder, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    change(folder, lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}))
    model = load(folder)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_a_missing_tensor(folder):
    change(folder, lambda t: t.pop("model.layers.1.mlp.up_proj.weight"))
    expect(
        r"1 tensors of Qwen2ForCausalLM are in no file, the first is 'model.layers.1.mlp.up_proj.weight'", folder, None
    )


def test_an_unexpected_tensor(folder):
    change(folder, lambda t: t.update({"model.layers.0.self_attn.sinks": torch.ones(4)}))
    expect("'model.layers.0.self_attn.sinks' has no place in Qwen2ForCausalLM", folder)


def test_a_wrong_shape(folder):
    change(folder, lambda t: t.update({"model.layers.0.self_attn.k_proj.weight": torch.ones(16, 64)}))
    expect(
        r"'model.layers.0.self_attn.k_proj.weight' has shape \[16, 64\], but config.json asks for \[32, 64\]", folder
    )


@pytest.mark.parametrize(
    "family", ["gpt2", "phi3", "gpt-neox", "mixtral", "qwen2-moe", "gpt-oss", "deepseek-v3", "internlm2"]
)
def test_every_value_of_every_family_has_one_place(family, monkeypatch):
    """Merged, transposed, packed and renamed tensors: each element of each parameter is written exactly once."""
    folder = family_folder(family)
    model = loader.empty_model(ModelConfig.load(folder))
    for param in model.parameters():
        param.zero_()
    for target in model.checkpoint_targets().values():
        target += 1
    assert all(bool((param == 1).all()) for param in model.parameters())
    assert set(model.checkpoint_targets()) >= set(load_file(folder / "model.safetensors"))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite(folder, value):
    def poison(tensors):
        tensors["model.layers.0.mlp.down_proj.weight"][3, 5] = value

    change(folder, poison)
    expect("'model.layers.0.mlp.down_proj.weight' holds 1 values that are NaN or infinite", folder)
    load(folder, check_finite=False)


def test_large_values_whose_sum_overflows_are_no_damage(folder):
    change(folder, lambda t: t["model.norm.weight"].fill_(3e38))
    load(folder)


def test_a_file_that_is_cut(folder):
    path = folder / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-100])
    expect("is cut short: tensor", folder)
    path.write_bytes(data[:5])
    expect("is cut short or is no safetensors file", folder)
    path.write_bytes(b"\x00" * 64)
    expect("header cannot be read", folder)
    path.write_bytes(b"PK\x03\x04" + b"x" * 500)
    expect("is cut short or is no safetensors file", folder)


@pytest.mark.parametrize(
    "entry, message",
    [
        ({"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}, "do not fit together"),
        ({"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}, "do not fit together"),
        ({"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}, "dtype 'F99'; known: F64"),
        ({"dtype": "F32", "shape": [1]}, "malformed"),
        ([], "malformed"),
    ],
)
def test_a_header_that_lies(tmp_path, entry, message):
    header = json.dumps({"w": entry}).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 16)
    with pytest.raises(ModelLoadError, match=message):
        read_header(path)


def test_headers_are_read_as_the_library_writes_them(tmp_path):
    tensors = {
        "a": torch.arange(6, dtype=torch.int64).view(2, 3),
        "b": torch.randn(3).bfloat16(),
        "empty": torch.empty(0, 4),
        "scalar": torch.tensor(2.5),
    }
    save_file(tensors, tmp_path / "x.safetensors", metadata={"format": "pt"})
    found = {t.name: t for t in read_header(tmp_path / "x.safetensors")}
    assert {n: (t.dtype, t.shape) for n, t in found.items()} == {
        n: (v.dtype, tuple(v.shape)) for n, v in tensors.items()
    }


def sharded(tmp_path):
    folder = copy_of(tiny_checkpoint("llama", max_shard_size="60KB"), tmp_path / "model")
    return folder, folder / "model.safetensors.index.json"


def test_a_missing_shard(tmp_path):
    folder, _ = sharded(tmp_path)
    shard = sorted(folder.glob("*.safetensors"))[1]
    shard.unlink()
    expect(f"1 of .* shards .* are missing, the first is '{shard.name}'", folder, None)


def test_an_index_that_is_wrong(tmp_path):
    folder, index = sharded(tmp_path)
    good = json.loads(index.read_text())
    files = sorted(set(good["weight_map"].values()))
    in_files = list(good["weight_map"].values())
    name, here = next((n, f) for n, f in good["weight_map"].items() if in_files.count(f) > 1)
    other = next(f for f in files if f != here)
    for change_map, message in (
        ({name: other}, f"says that tensor '{name}' is in {other}, but it is in {here}"),
        ({"ghost": files[0]}, "but it is in no shard"),
        ({"out": "../x.safetensors"}, "field 'weight_map' must map"),
    ):
        index.write_text(json.dumps({"weight_map": {**good["weight_map"], **change_map}}))
        expect(message, folder, index.name)
    index.write_text("{}")
    expect("is not a safetensors index", folder, index.name)


def test_a_tensor_in_two_files(tmp_path):
    folder = copy_of(tiny_checkpoint("llama"), tmp_path / "model")
    save_file({"model.norm.weight": torch.ones(64)}, folder / "extra.safetensors")
    with pytest.raises(ModelLoadError, match=r"'model.norm.weight' is also in extra.safetensors"):
        checkpoint_tensors(folder)


def test_a_folder_without_weights(folder):
    (folder / "model.safetensors").unlink()
    expect("no .*safetensors file: is this the right folder", folder, None)
    (folder / "pytorch_model.bin").write_bytes(b"x")
    expect("only 'pytorch_model.bin', a pickle, .* convert it", folder, None)


def test_an_unknown_architecture_lists_the_known(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["FrobForCausalLM"]}))
    expect("'FrobForCausalLM' is not known; known: .*LlamaForCausalLM, .*MistralForCausalLM", folder, "config.json")


def test_paths_of_models(tmp_path, monkeypatch):
    assert model_folder(str(tmp_path)) == tmp_path
    (tmp_path / "f").write_text("")
    for path, message in (
        (f"{tmp_path}/none", "no such folder"),
        ("none", "no such folder"),
        (f"{tmp_path}/f", "is a file"),
    ):
        with pytest.raises(ModelLoadError, match=message):
            model_folder(path)
    monkeypatch.setattr(loader, "BUILTIN_MODEL", tmp_path / "nothing")
    with pytest.raises(ModelLoadError, match="the built-in model is not installed"):
        model_folder(None)


def test_a_hub_id_is_downloaded_and_a_failure_says_what_to_do(tmp_path, monkeypatch):
    import huggingface_hub

    asked = []
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda name, **kw: asked.append((name, kw)) or str(tmp_path)
    )
    assert model_folder("some/model", "v1") == tmp_path
    assert asked[0][0] == "some/model" and asked[0][1]["revision"] == "v1"
    assert not any("bin" in pattern for pattern in asked[0][1]["allow_patterns"])
    for load_format, ending in (("auto", "*.safetensors"), ("pt", "*.bin"), ("gguf", "*.gguf")):
        model_folder("some/model", load_format=load_format)
        assert ending in asked[-1][1]["allow_patterns"]
    model_folder("some/model", load_format="dummy")
    assert "*.safetensors" not in asked[-1][1]["allow_patterns"]

    def offline(*args, **kw):
        raise OSError("no route")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(ModelLoadError, match=r"download failed \(OSError: no route\); check the name and the network"):
        model_folder("some/model")


class TestRegistry:
    def write(self, tmp_path, monkeypatch, **modules):
        package = tmp_path / "my_models"
        package.mkdir()
        (package / "__init__.py").write_text("")
        for name, text in modules.items():
            (package / f"{name}.py").write_text(text)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setenv(registry.EXTERNAL_PACKAGE_VARIABLE, "my_models")
        monkeypatch.setattr(registry, "_scan", registry._scan.__wrapped__)
        for name in [n for n in sys.modules if n.partition(".")[0] == "my_models"]:
            monkeypatch.delitem(sys.modules, name)

    GOOD = """
from dslc.runtime.models.llama import LlamaForCausalLM
class Mine(LlamaForCausalLM): pass
EntryClass = [Mine]
"""

    def test_an_external_package_adds_an_architecture(self, tmp_path, monkeypatch):
        self.write(tmp_path, monkeypatch, mine=self.GOOD, helper="x = 1")
        assert registry.model_class("Mine").__module__ == "my_models.mine"
        assert "LlamaForCausalLM" in registry.known_models()

    def test_a_module_that_fails_only_warns(self, tmp_path, monkeypatch):
        self.write(tmp_path, monkeypatch, mine=self.GOOD, broken="import no_such_thing_anywhere")
        with pytest.warns(UserWarning, match=r"my_models.broken is left out: ModuleNotFoundError"):
            assert registry.model_class("Mine")

    def test_two_classes_of_one_name_are_an_error(self, tmp_path, monkeypatch):
        self.write(tmp_path, monkeypatch, mine=self.GOOD, other=self.GOOD)
        with pytest.raises(ValueError, match=r"my_models.other: architecture 'Mine' is also in my_models.mine"):
            registry.known_models()

    def test_an_entry_that_is_no_model_is_an_error(self, tmp_path, monkeypatch):
        self.write(tmp_path, monkeypatch, mine="EntryClass = int")
        with pytest.raises(TypeError, match="must hold subclasses of CausalLM"):
            registry.known_models()

    def test_every_model_of_ours_is_one_file_with_the_interface(self):
        known = registry.known_models()
        assert set(known) >= {"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"}
        for cls in known.values():
            assert not getattr(cls, "__abstractmethods__", ())
