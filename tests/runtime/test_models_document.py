"""docs/models.md: its blocks run, on tiny models in the places of those that a reader would name."""

import re
import sys
from pathlib import Path

import torch
import transformers
from support.tiny_models import tiny_checkpoint, tiny_config, tiny_tokenizer

from dslc.runtime.models import registry

DOCUMENT = (Path(__file__).parents[2] / "docs" / "models.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", DOCUMENT, flags=re.S)

torch.set_num_threads(1)


def test_the_blocks_run(tmp_path, monkeypatch, capsys):
    reranker = tmp_path / "reranker"
    transformers.LlamaForSequenceClassification(tiny_config("llama")).save_pretrained(reranker)
    tiny_tokenizer().save_pretrained(reranker)
    names = {
        "folder": str(tiny_checkpoint("llama")),
        "embedder": str(tiny_checkpoint("qwen2")),
        "reranker": str(reranker),
    }
    external = [block for block in BLOCKS if block.startswith("# my_models/")]
    for block in BLOCKS:
        if block not in external:
            exec(block, names)
    assert capsys.readouterr().out.strip()
    assert len(external) == 1
    package = tmp_path / "my_models"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "shouting.py").write_text(external[0])
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("DSLC_EXTERNAL_MODEL_PACKAGE", "my_models")
    monkeypatch.setattr(registry, "_scan", registry._scan.__wrapped__)
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_models"]:  # of another test
        monkeypatch.delitem(sys.modules, name)
    assert registry.model_class("ShoutingForCausalLM").__module__ == "my_models.shouting"
