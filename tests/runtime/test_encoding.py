"""Embeddings, classifiers, reward models and scores against transformers, alone, batched and in chunks."""

import json
import threading

import pytest
import torch
import torch.nn.functional as F
import transformers
from support.families import COMMON, VOCAB, WIDE, WINDOW, draw_weights, family_folder, family_reference

from dslc.core.config import EngineConfig
from dslc.core.errors import ContextOverflow, EngineClosed, EngineError, ModelLoadError, RequestError
from dslc.runtime.engine import Engine
from dslc.runtime.model_runner import ModelRunner

torch.set_num_threads(1)
TOLERANCE = 1e-4
BERT = {"type_vocab_size": 2, "num_key_value_heads": ..., "pad_token_id": 1}
LABELS = {"num_labels": 3}

# name: (transformers' config and model, config fields, task)
MODELS = {
    "e5-mistral": ("MistralConfig", "MistralModel", {"sliding_window": WINDOW, **WIDE}, "embed"),
    "qwen2": ("Qwen2Config", "Qwen2Model", {}, "embed"),
    "gemma2": ("Gemma2Config", "Gemma2Model", {"query_pre_attn_scalar": 24, **WIDE}, "embed"),
    "bert": ("BertConfig", "BertModel", BERT, "embed"),
    "roberta": ("RobertaConfig", "RobertaModel", BERT, "embed"),
    "llama-reward": ("LlamaConfig", "LlamaForSequenceClassification", {"num_labels": 1}, "classify"),
    "gemma2-reward": (
        "Gemma2Config",
        "Gemma2ForSequenceClassification",
        {"query_pre_attn_scalar": 24, **WIDE, "num_labels": 1},
        "classify",
    ),
    "qwen3-sequence": ("Qwen3Config", "Qwen3ForSequenceClassification", {**WIDE, **LABELS}, "classify"),
    "bert-sequence": ("BertConfig", "BertForSequenceClassification", {**BERT, **LABELS}, "classify"),
    "roberta-sequence": ("XLMRobertaConfig", "XLMRobertaForSequenceClassification", {**BERT, **LABELS}, "classify"),
    "qwen2-tokens": ("Qwen2Config", "Qwen2ForTokenClassification", LABELS, "classify_tokens"),
    "bert-tokens": ("BertConfig", "BertForTokenClassification", {**BERT, **LABELS}, "classify_tokens"),
}


@pytest.fixture(scope="module", params=MODELS)
def model(request, tmp_path_factory):
    """(transformers' model, its folder, task)."""
    config_name, model_name, fields, task = MODELS[request.param]
    fields = {name: value for name, value in {**COMMON, **fields}.items() if value is not ...}
    config = getattr(transformers, config_name)(**fields)
    config._attn_implementation = "eager"
    made = getattr(transformers, model_name)(config).eval()
    draw_weights(made, 0.25, 0)
    folder = tmp_path_factory.mktemp(request.param)
    made.save_pretrained(folder)
    return made, folder, task


def engine_for(folder, **options):
    config = EngineConfig.of(
        model_path=str(folder), **{"max_total_tokens": 1024, "max_running_requests": 16, **options}
    )
    engine = Engine.of_parts(config, ModelRunner(config))
    engine.check_when_idle = True
    return engine


def inputs():
    rng = torch.Generator().manual_seed(3)
    return [torch.randint(4, VOCAB, (n,), generator=rng).tolist() for n in (1, 2, 9, 70, 33, 120, 5)]


def theirs(model, ids):
    """transformers' last hidden states [T, hidden], or logits [labels] or [T, labels]."""
    with torch.inference_mode():
        out = model(torch.tensor([ids]))
    return (out.last_hidden_state if "last_hidden_state" in out else out.logits)[0].float()


def test_alone_batched_and_chunked_equal_transformers(model):
    reference, folder, task = model
    expected = [theirs(reference, ids) for ids in inputs()]
    for options in ({}, {"chunked_prefill_size": 16}, {"deterministic": True, "max_running_requests": 3}):
        with engine_for(folder, **options) as engine:
            assert engine.task == task
            if task == "embed":
                check_embeddings(engine, expected)
                continue
            results = engine.encode(input_ids=inputs())
            for result, want, ids in zip(results, expected, inputs(), strict=True):
                torch.testing.assert_close(torch.tensor(result["logits"]), want, atol=TOLERANCE, rtol=0)
                best = want.argmax(-1).tolist()
                names = [f"LABEL_{i}" for i in best] if task == "classify_tokens" else f"LABEL_{best}"
                assert result.get("label", result.get("labels")) == names
                assert result["meta_info"]["prompt_tokens"] == len(ids)
            alone = engine.encode(input_ids=inputs()[3])
            torch.testing.assert_close(torch.tensor(alone["logits"]), expected[3], atol=TOLERANCE, rtol=0)


def check_embeddings(engine, hidden):
    pools = {
        "last": [states[-1] for states in hidden],
        "cls": [states[0] for states in hidden],
        "mean": [states.mean(dim=0) for states in hidden],
        "tokens": hidden,
    }
    for pooling, expected in pools.items():
        results = engine.encode(input_ids=inputs(), pooling=pooling, normalize=False)
        for result, want in zip(results, expected, strict=True):
            torch.testing.assert_close(torch.tensor(result["embedding"]), want, atol=TOLERANCE, rtol=0)
    default = "cls" if engine.runner.model.is_bidirectional else "last"
    unit = engine.encode(input_ids=inputs())
    for result, want in zip(unit, pools[default], strict=True):
        got = torch.tensor(result["embedding"])
        assert F.cosine_similarity(got, want, dim=0) > 0.99999 and abs(float(got.norm()) - 1) < 1e-5
    short = engine.encode(input_ids=inputs()[0], dimensions=10)["embedding"]
    torch.testing.assert_close(torch.tensor(short), F.normalize(pools[default][0][:10], dim=0), atol=1e-5, rtol=0)


def test_one_forward_per_chunk_and_no_kv_left():
    with engine_for(family_folder("qwen2"), is_embedding=True, chunked_prefill_size=64) as engine:
        engine.encode(input_ids=[5] * 200)
        counters = engine.counters()
        assert counters.forwards == 4 and counters.prefilled_tokens == 200
        assert engine.get_server_info()["free_tokens"] == 1024
        engine.encode(input_ids=[[5] * 8] * 8)
        assert engine.counters().forwards == 5


@pytest.mark.parametrize("flag", [False, True])
def test_a_language_model_read_as_an_embedder(flag, tmp_path):
    """As gte-Qwen2: config.json may say that its layers look both ways."""
    for path in family_folder("qwen2").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    fields = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**fields, "is_causal": not flag}))
    reference = family_reference("qwen2").model
    ids = inputs()[4]
    mask = torch.ones(1, 1, len(ids), len(ids), dtype=torch.bool)
    mask = mask if flag else mask.tril()
    additive = torch.zeros(mask.shape).masked_fill(~mask, float("-inf"))
    with torch.inference_mode():
        hidden = reference(torch.tensor([ids]), attention_mask=additive).last_hidden_state[0]
    with engine_for(tmp_path, is_embedding=True) as engine:
        got = engine.encode(input_ids=ids, normalize=False)["embedding"]
        torch.testing.assert_close(torch.tensor(got), hidden[-1], atol=TOLERANCE, rtol=0)
        with pytest.raises(RequestError, match="has no vocabulary"):
            engine.generate(input_ids=ids)


def test_pooling_is_read_from_sentence_transformers_files(tmp_path):
    for path in family_folder("qwen2").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    kinds = ["sentence_transformers.models.Transformer", "sentence_transformers.models.Pooling"]
    modules = [{"path": path, "type": kind} for path, kind in zip(["", "1_Pooling"], kinds, strict=True)]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    ids = inputs()[2]
    with torch.inference_mode():
        mean = family_reference("qwen2").model(torch.tensor([ids])).last_hidden_state[0].mean(dim=0)
    with engine_for(tmp_path, is_embedding=True) as engine:
        got = torch.tensor(engine.encode(input_ids=ids)["embedding"])
    torch.testing.assert_close(got, mean, atol=TOLERANCE, rtol=0)  # and not made of length 1
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_weighted": True}))
    with pytest.raises(ModelLoadError, match=r"modules.json: the pooling it asks for"):
        engine_for(tmp_path, is_embedding=True)


def test_items_scored_together_equal_items_scored_alone():
    reference = family_reference("llama3")
    query, items, labels = inputs()[4], [[7, 8, 9], [7, 8, 11, 12], [30], inputs()[3]], [5, 17, 101]

    def expected(ids):
        with torch.inference_mode():
            return torch.log_softmax(reference(torch.tensor([ids])).logits[0, -1].float(), -1)[labels]

    with engine_for(family_folder("llama3")) as engine:
        before = engine.counters().forwards
        together = engine.score(query, items, labels)
        assert engine.counters().forwards - before == 1
        for row, item in zip(together, items, strict=True):
            torch.testing.assert_close(torch.tensor(row), expected(query + item).exp(), atol=TOLERANCE, rtol=0)
        shares = engine.score(query, items, labels, apply_softmax=True)
        for row, item in zip(shares, items, strict=True):
            torch.testing.assert_close(torch.tensor(row), expected(query + item).softmax(0), atol=TOLERANCE, rtol=0)
        turned = engine.score(query, items, labels, item_first=True)
        for row, item in zip(turned, items, strict=True):
            torch.testing.assert_close(torch.tensor(row), expected(item + query).exp(), atol=TOLERANCE, rtol=0)
        for bad in ({"label_token_ids": []}, {"label_token_ids": labels, "items": []}):
            with pytest.raises(RequestError):
                engine.score(**{"query": query, "items": items, **bad})


def test_encoding_from_several_threads_while_the_engine_drives_itself():
    folder = family_folder("qwen2")
    with engine_for(folder, is_embedding=True, chunked_prefill_size=32) as engine:
        expected = [engine.encode(input_ids=ids)["embedding"] for ids in inputs()]
        engine.start()
        found = {}
        threads = [
            threading.Thread(target=lambda i=i, ids=ids: found.update({i: engine.encode(input_ids=ids)["embedding"]}))
            for i, ids in enumerate(inputs())
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for i, want in enumerate(expected):
            torch.testing.assert_close(torch.tensor(found[i]), torch.tensor(want), atol=1e-5, rtol=0)
    with pytest.raises(EngineClosed):
        engine.encode(input_ids=[4])


def test_inputs_of_a_caller_who_was_interrupted_are_dropped(monkeypatch):
    """Ctrl-C while they are read in chunks: what they hold is freed, and the next call is served as ever."""
    with engine_for(family_folder("qwen2"), is_embedding=True, chunked_prefill_size=8) as engine:
        ids = inputs()
        wanted = [result["embedding"] for result in engine.encode(input_ids=ids)]
        with monkeypatch.context() as patch:

            def interrupted(ready, timeout=None):
                engine.step()
                assert engine.encoder.num_leases > 0
                raise KeyboardInterrupt

            patch.setattr(engine, "wait", interrupted)
            with pytest.raises(KeyboardInterrupt):
                engine.encode(input_ids=ids[3:])
        engine.check_integrity()
        assert [result["embedding"] for result in engine.encode(input_ids=ids)] == wanted
        assert engine.encoder.num_leases == 0 and not engine.encoder.jobs
        engine.check_integrity()


def test_what_is_refused():
    with engine_for(family_folder("qwen2"), is_embedding=True, max_total_tokens=48) as engine:
        for options, message in (
            ({"input_ids": []}, "nothing to read"),
            ({"input_ids": [[4], []]}, r"input_ids\[1\]"),
            ({"input_ids": [VOCAB]}, f"below the vocabulary size {VOCAB}"),
            ({}, "either prompt or input_ids"),
            ({"input_ids": [4], "pooling": "max"}, "must be one of last, cls, mean, tokens"),
            ({"input_ids": [4], "dimensions": 65}, "between 1 and 64"),
            ({"prompt": "a"}, "no tokenizer"),
            ({"prompt": 5}, "prompt: must be a string"),
            ({"input_ids": 5}, "input_ids: must be a list"),
            ({"input_ids": [[4], 5]}, "input_ids: must be a list"),
        ):
            with pytest.raises(RequestError, match=message):
                engine.encode(**options)
        with pytest.raises(ContextOverflow, match="300 tokens are more than the model's 256 positions"):
            engine.encode(input_ids=[4] * 300)
        with pytest.raises(EngineError, match="60 tokens do not fit into the KV pool"):
            engine.encode(input_ids=[4] * 60)
        assert len(engine.encode(input_ids=[4] * 40)["embedding"]) == 64
    with engine_for(family_folder("qwen2")) as engine, pytest.raises(RequestError, match="is_embedding=True"):
        engine.encode(input_ids=[4])
