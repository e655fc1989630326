"""Penalties, masks and row bookkeeping: a batch does to each row what a scalar model does to it alone."""

import gc
import random
import weakref

import numpy as np
import pytest
import torch

from dslc.core.sampling import SamplingParams
from dslc.kernels.token_bitmask import apply_token_mask_, mask_words, pack_mask, unpack_mask
from dslc.runtime.sampling import penalties
from dslc.runtime.sampling.batch import SamplingBatch, SamplingRow
from dslc.runtime.sampling.filters import candidates
from dslc.runtime.sampling.sampler import Sampler

torch.set_num_threads(1)
VOCAB = 70
GREEDY = SamplingParams(temperature=0.0)


class ScalarRow:
    """One output, by the formulae of SamplingParams, in plain Python floats."""

    def __init__(self, row):
        self.row, self.output = row, list(row.output_ids)

    def logits(self, logits):
        p, out = self.row.params, [float(x) for x in logits]
        bias = dict(p.logit_bias)
        for i in range(len(out)):
            if i in self.row.prompt_ids or i in self.output:
                out[i] = out[i] / p.repetition_penalty if out[i] > 0 else out[i] * p.repetition_penalty
            count = self.output.count(i)
            out[i] -= p.frequency_penalty * count + p.presence_penalty * (count > 0)
            out[i] += bias.get(i, 0.0)
            if i in self.row.stop_ids and len(self.output) < p.min_new_tokens:
                out[i] = float("-inf")
        return out


def random_row(rng):
    maybe = lambda value, default: value if rng.random() < 0.4 else default  # noqa: E731
    params = SamplingParams(
        temperature=maybe(0.0, 0.8),
        top_k=maybe(5, -1),
        top_p=maybe(0.8, 1.0),
        frequency_penalty=maybe(rng.uniform(-2, 2), 0.0),
        presence_penalty=maybe(rng.uniform(-2, 2), 0.0),
        repetition_penalty=maybe(rng.uniform(0.5, 2), 1.0),
        min_new_tokens=maybe(rng.randrange(1, 6), 0),
        logit_bias={rng.randrange(VOCAB): rng.uniform(-5, 5)} if rng.random() < 0.3 else (),
    )
    prompt = [rng.randrange(VOCAB) for _ in range(rng.randrange(10))]
    output = [rng.randrange(VOCAB) for _ in range(rng.choice([0, 0, 4]))]
    return SamplingRow(params, rng.randrange(2**64), rng.randrange(3), prompt, output, (1, 2))


@pytest.mark.parametrize("seed", range(8))
def test_any_sequence_of_filter_merge_append_equals_the_scalar_model(seed):
    rng = random.Random(seed)
    batch, scalar = SamplingBatch(VOCAB), []
    for step in range(40):
        what = rng.random()
        if what < 0.35 or not scalar:
            rows = [random_row(rng) for _ in range(rng.randrange(1, 5))]
            batch.merge(SamplingBatch.of(rows, VOCAB))
            scalar += [ScalarRow(row) for row in rows]
        elif what < 0.55:
            keep = rng.sample(range(len(scalar)), rng.randrange(len(scalar) + 1))
            batch.filter(keep)
            scalar = [scalar[i] for i in keep]
        elif what < 0.7:  # retracted and admitted again: the state comes back from the tokens
            again = [
                SamplingRow(s.row.params, s.row.seed, s.row.choice, s.row.prompt_ids, s.output, (1, 2)) for s in scalar
            ]
            batch = SamplingBatch.of(again, VOCAB)
        else:
            ids = [rng.randrange(-1, VOCAB) for _ in scalar]
            batch.append(torch.tensor(ids))
            for s, i in zip(scalar, ids, strict=True):
                s.output += [i] if i >= 0 else []
        assert len(batch) == len(scalar)
        logits = torch.randn(len(scalar), VOCAB, generator=torch.Generator().manual_seed(step)) * 3
        steps = torch.tensor([len(s.output) for s in scalar], dtype=torch.int64)
        changed = logits.clone()
        batch.change_logits_(changed, steps)
        expected = torch.tensor([s.logits(row) for s, row in zip(scalar, logits, strict=True)]).view(-1, VOCAB)
        torch.testing.assert_close(changed, expected, atol=1e-4, rtol=1e-5)
        untouched = [i for i, s in enumerate(scalar) if s.row.params == SamplingParams(temperature=0.8)]
        assert torch.equal(changed[untouched], logits[untouched])
        # and the draw of each row is that of the row alone
        ids = Sampler().sample(logits, batch, None, steps).tolist()
        for i, s in enumerate(scalar):
            row = SamplingRow(s.row.params, s.row.seed, s.row.choice, s.row.prompt_ids, s.output, (1, 2))
            alone = Sampler().sample(logits[i : i + 1], SamplingBatch.of([row], VOCAB), None, steps[i : i + 1])
            assert alone.tolist() == [ids[i]]


def test_what_a_penalty_remembered_is_freed_with_its_last_row():
    batch = SamplingBatch.of([SamplingRow(SamplingParams(frequency_penalty=1.0), 0), SamplingRow(GREEDY, 0)], VOCAB)
    counts = weakref.ref(batch._active["count"].state["counts"])
    batch.filter([1])
    gc.collect()
    assert counts() is None and not batch.changes_logits


def test_a_registered_penalizer_takes_effect_on_the_rows_that_need_it():
    class EvenOnly(penalties.Penalizer):
        name = "even_only"

        def is_required(self, params):
            return params.min_p == 0.25

        def begin(self, rows, vocab_size, device):
            return {"odd": (torch.arange(vocab_size) % 2 == 1).expand(len(rows), -1).clone()}

        def apply(self, state, logits, steps):
            logits.masked_fill_(state["odd"], float("-inf"))

    penalizer = penalties.register_penalizer(EvenOnly())
    try:
        with pytest.raises(ValueError, match="registered already"):
            penalties.register_penalizer(EvenOnly())
        rows = [SamplingRow(SamplingParams(temperature=0.0, min_p=0.25), 0), SamplingRow(GREEDY, 0)]
        logits = torch.arange(VOCAB, dtype=torch.float32).expand(2, -1)
        assert Sampler().sample(logits, SamplingBatch.of(rows, VOCAB)).tolist() == [VOCAB - 2, VOCAB - 1]
    finally:
        del penalties.PENALIZERS[penalizer.name]


def test_greedy_takes_the_lowest_of_equal_ids():
    logits = torch.zeros(3, VOCAB)
    logits[1, [9, 40]] = 5.0
    logits[2, 69] = 1.0
    assert Sampler().sample(logits, SamplingBatch.of([SamplingRow(GREEDY, 0)] * 3, VOCAB)).tolist() == [0, 9, 69]


def test_a_row_without_a_possible_token_or_with_nan_says_so_and_spares_the_others():
    logits = torch.randn(4, VOCAB)
    logits[1] = float("-inf")
    logits[2, 5] = float("nan")
    for params in (GREEDY, SamplingParams(), SamplingParams(top_p=0.9), SamplingParams(top_k=3, min_p=0.1)):
        ids = Sampler().sample(logits, SamplingBatch.of([SamplingRow(params, 1)] * 4, VOCAB)).tolist()
        assert ids[1] == ids[2] == -1 and ids[0] >= 0 and ids[3] >= 0


@pytest.mark.parametrize("vocab, words", [(33, 2), (64, 2), (1000, 32), (70, 2)])
def test_masks_bar_exactly_the_tokens_not_in_them(vocab, words):
    rng = torch.Generator().manual_seed(0)
    allowed = torch.rand(5, min(vocab, words * 32), generator=rng) < 0.3
    logits = torch.randn(5, vocab, generator=rng)
    mask = pack_mask(allowed)
    assert mask.shape == (5, mask_words(allowed.shape[1])) and mask.dtype == torch.int32
    mask[3] = -1  # no constraint
    masked = logits.clone()
    apply_token_mask_(masked, mask)
    full = torch.zeros(5, vocab, dtype=torch.bool)
    full[:, : allowed.shape[1]] = allowed
    full[3] = True
    expected = logits.masked_fill(~full, float("-inf"))
    assert torch.equal(masked, expected)
    torch_way = (mask.unsqueeze(-1) >> torch.arange(32, dtype=torch.int32) & 1).bool().flatten(1)
    assert torch.equal(unpack_mask(mask, words * 32), torch_way)


def test_a_draw_obeys_the_mask_and_leaves_the_logits_alone():
    logits = torch.randn(200, VOCAB, generator=torch.Generator().manual_seed(0))
    kept = logits.clone()
    allowed = torch.zeros(200, VOCAB, dtype=torch.bool)
    allowed[torch.arange(200), torch.arange(200) % VOCAB] = True  # one token each
    allowed[:, 3] = True
    for params in (GREEDY, SamplingParams(temperature=2.0), SamplingParams(temperature=2.0, top_k=50, top_p=0.99)):
        batch = SamplingBatch.of([SamplingRow(params, i) for i in range(200)], VOCAB)
        ids = Sampler().sample(logits, batch, pack_mask(allowed))
        assert allowed[torch.arange(200), ids].all()
        assert torch.equal(logits, kept)


def test_min_new_tokens_bars_end_tokens_until_reached():
    params = SamplingParams(min_new_tokens=4, logit_bias={7: 100.0})
    row = SamplingRow(params, 0, stop_ids=(7, 8))
    batch = SamplingBatch.of([row], VOCAB)
    logits = torch.zeros(1, VOCAB)
    for step in range(4):
        assert Sampler().sample(logits, batch, None, torch.tensor([step])).item() not in (7, 8)
    assert Sampler().sample(logits, batch, None, torch.tensor([4])).item() == 7


def test_bias_forces_and_forbids():
    logits = torch.randn(100, VOCAB, generator=torch.Generator().manual_seed(1))
    for seed in range(3):
        rows = [SamplingRow(SamplingParams(logit_bias={11: 100.0}), seed)] * 100
        assert Sampler().sample(logits, SamplingBatch.of(rows, VOCAB)).eq(11).all()
        rows = [SamplingRow(SamplingParams(logit_bias=dict.fromkeys(range(60), -100.0)), seed)] * 100
        assert Sampler().sample(logits, SamplingBatch.of(rows, VOCAB)).ge(60).all()


def test_a_row_draws_the_same_whatever_its_batch_mates_and_width():
    """Wide top-p rows beside narrow ones widen the ranking; the narrow rows must not notice."""
    vocab = 5000
    rng = random.Random(0)
    logits = torch.randn(12, vocab, generator=torch.Generator().manual_seed(0)).bfloat16().float()  # many ties
    kinds = [
        SamplingParams(temperature=t, top_k=k, top_p=p, min_p=m)
        for t, k, p, m in [
            (1, -1, 0.999, 0),
            (1, 3, 1, 0),
            (2, 400, 0.9, 0),
            (0.5, -1, 0.3, 0),
            (1, -1, 1, 0),
            (0, -1, 1, 0),
        ]
    ] * 2
    rows = [SamplingRow(params, rng.randrange(2**63)) for params in kinds]
    together = Sampler().sample(logits, SamplingBatch.of(rows, vocab)).tolist()
    for i in range(12):
        for mates in ([i], [i, (i + 1) % 12], [(i + 5) % 12, i]):
            ids = Sampler().sample(logits[mates], SamplingBatch.of([rows[m] for m in mates], vocab))
            assert ids[mates.index(i)] == together[i]
    one_by_one = Sampler(deterministic=True).sample(logits, SamplingBatch.of(rows, vocab)).tolist()
    assert one_by_one == together


@pytest.mark.parametrize("seed", range(5))
def test_candidates_equal_a_full_sort(seed):
    rng = torch.Generator().manual_seed(seed)
    vocab = 3000
    logits = (torch.randn(6, vocab, generator=rng) * 2).round(decimals=seed % 3)  # from many ties to few
    weights = torch.exp(logits - logits.amax(1, keepdim=True))
    top_k = torch.tensor([1, 50, vocab, 2**31, 700, 5])
    top_p = torch.tensor([1.0, 0.5, 0.2, 0.97, 0.999, 0.01])
    ranked, ids = candidates(weights, top_k, top_p)
    for row in range(6):
        order = sorted(range(vocab), key=lambda i: (-weights[row, i].item(), i))[: int(top_k[row])]
        mass = np.cumsum([weights[row, i].double().item() for i in order])
        keep = [
            i for n, i in enumerate(order) if top_p[row] >= 1 or n == 0 or mass[n - 1] < top_p[row].double() * mass[-1]
        ]
        kept_ids = torch.arange(vocab) if ids is None else ids[row]
        got = kept_ids[ranked[row] > 0].tolist()
        assert got == sorted(keep)


def test_greedy_batches_take_the_fast_path_and_agree_with_the_slow_one():
    greedy = SamplingBatch.of([SamplingRow(GREEDY, 0), SamplingRow(SamplingParams(top_k=1), 0)], VOCAB)
    assert greedy.all_greedy and not greedy.changes_logits
    mixed = SamplingBatch.of([SamplingRow(GREEDY, 0), SamplingRow(SamplingParams(), 0)], VOCAB)
    assert not mixed.all_greedy
    kinds = mixed.kinds
    assert kinds.greedy is not None and kinds.plain is not None and kinds.ranked is None
    assert SamplingBatch.of([SamplingRow(SamplingParams(), 0)], VOCAB).kinds.plain.rows is None
    logits = torch.randn(2, VOCAB)
    assert Sampler().sample(logits, mixed)[0] == Sampler().sample(logits, greedy)[0]
    # top_k of the whole vocabulary filters nothing: the ranked way must give the plain way's draws
    plain = SamplingBatch.of([SamplingRow(SamplingParams(), s) for s in range(300)], VOCAB)
    ranked = SamplingBatch.of([SamplingRow(SamplingParams(top_p=0.9999999), s) for s in range(300)], VOCAB)
    assert ranked.kinds.plain is None
    same = torch.randn(1, VOCAB).expand(300, -1)
    assert torch.equal(Sampler().sample(same, plain), Sampler().sample(same, ranked))


@pytest.mark.parametrize("options", [{}, {"top_k": 20}, {"top_p": 0.9}, {"min_p": 0.1}])
def test_no_temperature_is_so_high_that_a_barred_token_is_drawn(options):
    """Beyond float32 a temperature would be infinite, and -inf / inf is no number."""
    mask = torch.zeros(50, 2, dtype=torch.int32)
    mask[:, 0] = 0b110000
    for temperature in (1e38, 1e39, 1e308):
        params = SamplingParams(temperature=temperature, **options)
        params.verify(64)
        batch = SamplingBatch.of([SamplingRow(params, seed) for seed in range(50)], 64)
        assert set(Sampler().sample(torch.randn(50, 64), batch, mask).tolist()) == {4, 5}


def test_the_wrong_number_of_rows_is_refused():
    with pytest.raises(ValueError, match="3 rows of logits for a batch of 1"):
        Sampler().sample(torch.zeros(3, VOCAB), SamplingBatch.of([SamplingRow(GREEDY, 0)], VOCAB))
    assert Sampler().sample(torch.zeros(0, VOCAB), SamplingBatch(VOCAB)).shape == (0,)
