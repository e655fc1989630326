"""Every family against transformers: logits of prefill, chunks and decodes, and greedy ids of a batch of 16.

One row of `support.families.FAMILIES` is one tiny random checkpoint. What is measured is what `docs/models.md` shows.
"""

import re
from pathlib import Path

import pytest
import torch
import transformers
from support.batches import Slots, make_batch
from support.families import COMMON, FAMILIES, GENERIC, architecture_of
from support.family_checks import TOLERANCE, compare_greedy, compare_logits, prompt, reference_logits, runner_for

from dslc.core.config import EngineConfig
from dslc.core.errors import ConfigError, ModelLoadError
from dslc.runtime.engine import Engine
from dslc.runtime.model_runner import ModelRunner

torch.set_num_threads(1)


NO_DECODERS = [
    ("mamba", "Mamba", {}, "'MambaForCausalLM' is not known"),
    ("lfm2", "Lfm2", {"layer_types": ["conv", "full_attention"]}, "its rows meet outside attention|layers attend"),
    ("roberta", "Roberta", {"num_key_value_heads": 4}, "its rows see what comes after them"),
]


BACKENDS = ["auto", "torch_native", "torch_deterministic"]
SELDOM = set(list(GENERIC)[16:])  # families run by transformers' code beyond the first 16: among the slow tests


def rows(*others):
    """(family, one of the others) for all families; where transformers' code runs, the first of them only."""
    return [
        pytest.param(name, *other, marks=[pytest.mark.slow] if name in SELDOM else [])
        for name in FAMILIES
        for other in (others[:1] if name in GENERIC else others)
    ]


@pytest.mark.parametrize("family, backend", rows(*((backend,) for backend in BACKENDS)))
def test_prefill_chunks_and_decodes_equal_transformers(family, backend):
    runner = runner_for(family, attention_backend=backend, deterministic=backend == "torch_deterministic")
    found = compare_logits(family, runner)
    print(f"{family}: at once {found.at_once:.1e}, in parts {found.in_parts:.1e}")
    assert found.spread > 0.5
    assert max(found.at_once, found.in_parts) < TOLERANCE
    assert found.is_same_bits or not runner.config.deterministic


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "glm4", "mixtral", "gpt-oss", "deepseek-v3"])
def test_weights_in_bfloat16(family):
    """Half the memory, activations in float32: close to the whole model, and every kind of module takes part."""
    ids = prompt(40)
    logits = []
    for dtype in ("float32", "bfloat16"):
        runner = runner_for(family, dtype=dtype, attention_backend="torch_native")
        slots = Slots(runner.req_to_token, runner.num_tokens)
        logits.append(runner.forward(make_batch(slots, [(slots.sequence(), ids)])))
    matrices = [param for param in runner.model.parameters() if param.dim() > 1]
    gates = [param for name, param in runner.model.named_parameters() if ".gate.weight" in name or "router" in name]
    assert {param.dtype for param in matrices if all(param is not gate for gate in gates)} == {torch.bfloat16}
    assert logits[1].dtype == torch.float32
    alike = torch.nn.functional.cosine_similarity(*logits, dim=-1)
    assert alike.median() > 0.995 and alike.mean() > 0.98  # a router's near-tie may send a row elsewhere


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - set(GENERIC)))
def test_a_forward_of_no_rows(family):
    runner = runner_for(family, attention_backend="torch_native")
    slots = Slots(runner.req_to_token, runner.num_tokens)
    assert runner.forward(make_batch(slots, [])).shape == (0, runner.vocab_size)


def test_what_runs_a_family():
    quick = [name for name in FAMILIES if name not in SELDOM]
    assert {name for name in quick if runner_for(name).model.is_generic} == set(GENERIC) - SELDOM
    assert len(set(GENERIC) - SELDOM) >= 15


def test_transformers_code_may_be_asked_for_and_is_never_deterministic():
    assert runner_for("granite", model_impl="transformers").model.is_generic
    with pytest.raises(ModelLoadError, match="'CohereForCausalLM' is not known"):
        runner_for("cohere", model_impl="dslc")
    with pytest.raises(ConfigError, match="deterministic"):
        runner_for("cohere", deterministic=True)


@pytest.mark.parametrize("name, cls, fields, why", NO_DECODERS)
def test_what_is_no_plain_decoder_is_refused(name, cls, fields, why, tmp_path):
    config = getattr(transformers, f"{cls}Config")(**{**COMMON, **fields})
    getattr(transformers, f"{cls}ForCausalLM")(config).save_pretrained(tmp_path)
    with pytest.raises(ModelLoadError, match=why):
        ModelRunner(EngineConfig.of(model_path=str(tmp_path), max_total_tokens=64, max_running_requests=2))


@pytest.mark.parametrize("family", rows(()))
def test_greedy_batch_of_16_equals_transformers(family):
    found = compare_greedy(family, runner_for(family))
    assert found.same == found.clear >= 0.95 * found.total
    assert found.kinds > 16  # not one token over and over


@pytest.mark.parametrize("family", ["gpt2", "gemma3", "gpt-oss", "deepseek-v2", "cohere2", "olmoe"])
def test_a_whole_engine_with_cache_chunks_and_branches(family):
    """Prompts that share a beginning, in chunks, then again from the cache, then a scored choice of branches."""
    runner = runner_for(family)
    shared = prompt(40)
    prompts = [shared[:n] + prompt(m, seed=n) for n, m in ((40, 5), (40, 9), (30, 12), (0, 20))]
    ask = {"max_new_tokens": 8, "temperature": 0.0, "ignore_eos": True}
    config = EngineConfig.of(**{**vars_of(runner.config), "chunked_prefill_size": 16})
    with Engine.of_parts(config, runner, check_when_idle=True) as engine:
        first = [result["output_ids"] for result in engine.generate(input_ids=prompts, sampling_params=ask)]
        before = engine.counters().cached_tokens
        again = [result["output_ids"] for result in engine.generate(input_ids=prompts, sampling_params=ask)]
        assert engine.counters().cached_tokens - before >= sum(map(len, prompts)) - 2 * len(prompts)
        items, labels = [[7, 8, 9], [7, 30], [11]], [5, 6]
        scores = torch.tensor(engine.score(prompts[0], items, labels))
    for ids, outputs in zip(prompts, zip(first, again, strict=True), strict=True):
        for out in outputs:
            best = reference_logits(family, ids + out[:-1])[len(ids) - 1 :].topk(2)
            is_clear = best.values[:, 0] - best.values[:, 1] > 2 * TOLERANCE
            assert is_clear.sum() >= 7
            assert torch.equal(torch.tensor(out)[is_clear], best.indices[:, 0][is_clear])
    for row, item in zip(scores, items, strict=True):
        expected = reference_logits(family, prompts[0] + item)[-1].softmax(-1)[labels]
        torch.testing.assert_close(row, expected, atol=TOLERANCE, rtol=0)


def vars_of(config):
    return {name: getattr(config, name) for name in EngineConfig.__dataclass_fields__}


def test_the_document_has_a_row_for_every_family():
    """docs/models.md is what benchmarks/models.py printed: all families, all within the tolerance."""
    text = (Path(__file__).parents[2] / "docs" / "models.md").read_text()
    rows = [line.split("|")[1:-1] for line in text.splitlines() if line.startswith("| ")]
    rows = [[cell.strip() for cell in row] for row in rows]
    by_name = {row[0]: row for row in rows if row[0] in FAMILIES}
    assert set(by_name) == set(FAMILIES)
    for name, row in by_name.items():
        architecture, way, at_once, in_parts, greedy = row[1:]
        assert architecture == architecture_of(name) and way.startswith("transformers") == (name in GENERIC), name
        same, clear, total = (int(number) for number in re.findall(r"\d+", greedy))
        assert max(float(at_once), float(in_parts)) < TOLERANCE and same == clear >= 0.95 * total, name
