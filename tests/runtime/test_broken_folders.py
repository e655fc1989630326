"""Model folders as users have them when something went wrong: each error names the file and says what to do."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.tiny_models import tiny_checkpoint

from dslc.core.errors import ModelLoadError
from dslc.runtime.engine import Engine

torch.set_num_threads(1)


def change_config(folder, **fields):
    path = folder / "config.json"
    merged = {**json.loads(path.read_text()), **fields}
    path.write_text(json.dumps({name: value for name, value in merged.items() if value is not ...}))


def change_weights(folder, edit):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path)


def no_weights(folder):
    (folder / "model.safetensors").unlink()


def truncated_file(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def wrong_shape(folder):
    change_config(folder, intermediate_size=120)


def not_a_number(folder):
    change_weights(folder, lambda tensors: tensors["model.layers.0.mlp.up_proj.weight"].view(-1)[7].fill_(float("nan")))


def vocabulary_mismatch(folder):
    change_config(folder, vocab_size=300)

    def cut(tensors):
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            tensors[name] = tensors[name][:300].clone()

    change_weights(folder, cut)


def unknown_architecture(folder):
    change_config(folder, architectures=["FrobnicateForCausalLM"])


def pickle_only(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    no_weights(folder)


def missing_tokenizer(folder):
    (folder / "tokenizer.json").unlink()


def bad_json(folder):
    (folder / "config.json").write_text((folder / "config.json").read_text()[:-20])


def missing_shard(folder):
    tensors = load_file(folder / "model.safetensors")
    index = dict.fromkeys(tensors, "model-00001-of-00002.safetensors")
    index["model.norm.weight"] = "model-00002-of-00002.safetensors"
    del tensors["model.norm.weight"]
    save_file(tensors, folder / "model-00001-of-00002.safetensors")
    no_weights(folder)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))


def wrong_dtype(folder):
    def quantise(tensors):
        name = "model.layers.1.mlp.down_proj.weight"
        tensors[name] = (tensors[name] * 100).to(torch.int8)

    change_weights(folder, quantise)


def config_without_a_field(folder):
    change_config(folder, num_hidden_layers=...)


# what happened: (the file named, "" for the folder, what is wrong, what to do)
BROKEN = {
    no_weights: ("", "no .*safetensors file", "is the download complete"),
    truncated_file: ("model.safetensors", "is cut short: tensor", "download the file again"),
    wrong_shape: ("model.safetensors", r"shape \[64, 128\], but .* asks for \[64, 120\]", "does config.json belong"),
    not_a_number: ("model.safetensors", "'model.layers.0.mlp.up_proj.weight' holds 1 values", "download it again"),
    vocabulary_mismatch: ("", "has 212 tokens, .* no ids .vocab_size=300", "another model's tokenizer"),
    unknown_architecture: ("config.json", "'FrobnicateForCausalLM' is not known", "DSLC_EXTERNAL_MODEL_PACKAGE"),
    pickle_only: ("", "only 'pytorch_model.bin', a pickle", "load_format='pt'"),
    missing_tokenizer: ("", "holds no tokenizer", "give tokenizer_path"),
    bad_json: ("config.json", "cannot be read as JSON", "download it again"),
    missing_shard: ("", "1 of 2 shards .* 'model-00002-of-00002.safetensors'", "download them again"),
    wrong_dtype: ("model.safetensors", "down_proj.weight' holds int8", "Use the model's plain one"),
    config_without_a_field: ("config.json", "field 'num_hidden_layers' is missing", "the model's own config.json"),
}


@pytest.fixture
def folder(tmp_path):
    for path in tiny_checkpoint("llama").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


@pytest.mark.parametrize("happened", BROKEN, ids=lambda function: function.__name__)
def test_the_error_names_the_file_and_the_remedy(happened, folder):
    file, wrong, remedy = BROKEN[happened]
    Engine(model_path=str(folder), max_total_tokens=64, max_running_requests=2).close()  # it was whole
    happened(folder)
    with pytest.raises(ModelLoadError, match=wrong) as caught:
        Engine(model_path=str(folder), max_total_tokens=64, max_running_requests=2)
    assert Path(caught.value.path) == (folder / file if file else folder)
    assert remedy in str(caught.value)
