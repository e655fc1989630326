"""Log-probs equal the log-softmax of transformers' logits, for outputs and prompts, over cached prefixes and chunks."""

import pytest
import torch
from support.batches import Slots, make_batch
from support.tiny_models import VOCAB_SIZE, reference_model, tiny_checkpoint

from dslc.core.config import EngineConfig
from dslc.core.sampling import SamplingParams
from dslc.runtime.model_runner import ModelRunner
from dslc.runtime.sampling import sampler
from dslc.runtime.sampling.batch import SamplingBatch, SamplingRow
from dslc.runtime.sampling.logprobs import rows_keep_bits, token_logprobs
from dslc.runtime.sampling.sampler import Sampler

torch.set_num_threads(1)


@pytest.mark.parametrize("chunk", [1, 7, 50])
def test_prompt_logprobs_over_chunks_and_a_shared_prefix(chunk):
    path = tiny_checkpoint("llama")
    runner = ModelRunner(EngineConfig.of(model_path=str(path), max_total_tokens=1024, max_running_requests=8))
    slots = Slots(runner.req_to_token, runner.num_tokens)
    ids = torch.randint(4, VOCAB_SIZE, (50,), generator=torch.Generator().manual_seed(0)).tolist()
    first = slots.sequence()
    runner.forward(make_batch(slots, [(first, ids[:20])]))
    cached = slots.sequence(share=first, shared_len=20)  # 20 tokens are there already; from there in chunks
    got = []
    for begin in range(20, 49, chunk):
        end = min(begin + chunk, 49)
        logits = runner.forward(make_batch(slots, [(cached, ids[begin:end])]))
        got += Sampler().logprobs(logits, torch.tensor(ids[begin + 1 : end + 1]), 3, [[5, 0]] * (end - begin)).rows()
    with torch.inference_mode():
        expected = reference_model(path)(torch.tensor([ids])).logits[0].log_softmax(-1)
    assert [lp.token_id for lp in got] == ids[21:50]
    for i, lp in enumerate(got):
        row = expected[20 + i]
        assert lp.logprob == pytest.approx(row[ids[21 + i]].item(), abs=1e-4)
        assert [value for _, value in lp.top] == pytest.approx(row.topk(3).values.tolist(), abs=1e-4)
        assert lp.chosen == ((5, pytest.approx(row[5].item(), abs=1e-4)), (0, pytest.approx(row[0].item(), abs=1e-4)))


def test_top_ids_of_equal_logits_are_the_lowest():
    logits = torch.zeros(2, 100)
    logits[1, [90, 20, 55]] = 1.0
    found = token_logprobs(logits, torch.tensor([0, -1]), top=4).rows([4, 2])
    assert [i for i, _ in found[0].top] == [0, 1, 2, 3]
    assert [i for i, _ in found[1].top] == [20, 55]
    assert found[1].logprob is None and found[0].logprob == pytest.approx(-torch.tensor(100.0).log().item())


def test_alone_and_among_others_have_equal_bits_row_by_row():
    logits = torch.randn(16, 1001, generator=torch.Generator().manual_seed(0)) * 4
    ids = torch.arange(16)
    together = token_logprobs(logits, ids, row_by_row=True).chosen
    alone = torch.cat([token_logprobs(logits[i : i + 1], ids[i : i + 1], row_by_row=True).chosen for i in range(16)])
    assert torch.equal(together, alone)
    assert token_logprobs(logits[:0], ids[:0], 3, []).rows() == []


def test_rows_are_done_together_only_where_that_leaves_their_bits(monkeypatch):
    """Whatever the trial says, a row's draw and log-prob are those it has alone."""
    logits = torch.randn(12, 700, generator=torch.Generator().manual_seed(4)) * 3
    params = [
        SamplingParams(temperature=0.8, top_p=0.9), SamplingParams(top_k=7), SamplingParams(min_p=0.05),
        SamplingParams(),
    ]  # fmt: skip
    rows = [SamplingRow(params[i % 4], seed=i) for i in range(12)]
    ids = torch.arange(12)
    results = []
    for together in (True, False):
        monkeypatch.setattr(sampler, "rows_keep_bits", lambda *shape, answer=together: answer)
        drawing = Sampler(deterministic=True)
        assert drawing.works_row_by_row(logits) is not together
        results.append((drawing.sample(logits, SamplingBatch.of(rows, 700)), drawing.logprobs(logits, ids).chosen))
    assert rows_keep_bits(700, 1) and not rows_keep_bits(700, 2)
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])
