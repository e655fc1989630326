"""Mixtures of experts: routes equal transformers' routers, results a loop over rows, bits do not depend on company."""

import pytest
import torch
import torch.nn.functional as F
import transformers
from support.families import FAMILIES, draw_weights, family_config
from support.family_checks import runner_for

from dslc.runtime.layers.moe import Experts, grouped_top_k, softmax_top_k
from dslc.runtime.layers.rowwise import fix_counts

torch.set_num_threads(1)
ROUTED = ["mixtral", "qwen2-moe", "qwen3-moe", "deepseek-v2", "deepseek-v2-lite", "deepseek-v3", "gpt-oss"]


@pytest.mark.parametrize("name", ROUTED)
def test_experts_and_weights_are_those_of_transformers(name):
    """The same hidden rows through both gates, with the checkpoint's weights."""
    runner = runner_for(name)
    reference = getattr(transformers, FAMILIES[name].model)(family_config(name)).eval()
    draw_weights(reference, FAMILIES[name].std, FAMILIES[name].seed, FAMILIES[name].embed_std)
    layer = len(reference.model.layers) - 1
    theirs, ours = reference.model.layers[layer].mlp, runner.model.model.layers[layer].mlp
    x = torch.randn(200, 64, generator=torch.Generator().manual_seed(1))
    gate = theirs.router if name == "gpt-oss" else theirs.gate
    with torch.inference_mode():
        _, weights, ids = gate(x)
        mine = {}
        ours.experts.mix = lambda rows, routes: mine.update(routes=routes) or rows
        ours(x)
    got_weights, got_ids = mine["routes"]
    order, mine_order = ids.argsort(dim=-1), got_ids.argsort(dim=-1)
    assert torch.equal(ids.gather(1, order), got_ids.gather(1, mine_order))
    torch.testing.assert_close(
        got_weights.gather(1, mine_order), weights.float().gather(1, order), atol=1e-6, rtol=1e-5
    )
    assert len(ids.unique()) == ours.experts.num_experts  # all of them are somebody's


def experts(num=8, hidden=24, inner=13):
    made = Experts(num, hidden, inner, "silu")
    rng = torch.Generator().manual_seed(0)
    for param in made.parameters():
        param.requires_grad_(False).copy_(torch.randn(param.shape, generator=rng) * 0.3)
    return made


def by_rows(made, x, weights, ids):
    """Row by row, expert by expert, as the formula says."""
    out = torch.zeros_like(x)
    for row in range(len(x)):
        for weight, expert in zip(weights[row], ids[row], strict=True):
            gate, up = (made.w13[expert] @ x[row]).chunk(2)
            out[row] += weight * (made.w2[expert] @ (F.silu(gate) * up))
    return out


@pytest.mark.parametrize("rows, k", [(1, 1), (1, 2), (3, 8), (17, 2), (64, 3)])
@pytest.mark.parametrize("is_lopsided", [False, True])
def test_a_mixture_is_the_sum_of_its_experts(rows, k, is_lopsided):
    made = experts()
    rng = torch.Generator().manual_seed(rows)
    x, scores = torch.randn(rows, 24, generator=rng), torch.randn(rows, 8, generator=rng)
    if is_lopsided:  # some experts get no row
        scores[:, 5:] -= 100
    weights, ids = softmax_top_k(scores, k, renormalise=True)
    torch.testing.assert_close(made.mix(x, (weights, ids)), by_rows(made, x, weights, ids), atol=1e-5, rtol=1e-5)


def test_no_rows():
    made = experts()
    routes = torch.zeros(0, 2), torch.zeros(0, 2, dtype=torch.int64)
    assert made.mix(torch.zeros(0, 24), routes).shape == (0, 24)


def test_deterministic_bits_do_not_depend_on_who_else_goes_to_an_expert():
    made = experts(hidden=64, inner=48)
    fix_counts(made, torch.float32, torch.device("cpu"))
    rng = torch.Generator().manual_seed(5)
    x, scores = torch.randn(150, 64, generator=rng), torch.randn(150, 8, generator=rng)
    weights, ids = softmax_top_k(scores, 2, renormalise=True)
    together = made.mix(x, (weights, ids))
    for rows in (slice(0, 1), slice(3, 20), slice(149, 150), slice(40, 130)):
        assert torch.equal(made.mix(x[rows], (weights[rows], ids[rows])), together[rows])


def test_only_experts_of_the_best_groups_are_chosen():
    affinity = torch.rand(300, 12, generator=torch.Generator().manual_seed(2))
    bias = torch.randn(12, generator=torch.Generator().manual_seed(3)) * 0.2
    weights, ids = grouped_top_k(affinity, 4, 4, 2, bias=bias, best=2)
    for row in range(300):
        choice = affinity[row] + bias
        groups = choice.view(4, 3).topk(2).values.sum(dim=-1).topk(2).indices.tolist()
        allowed = [i for i in range(12) if i // 3 in groups]
        best = sorted(allowed, key=lambda i: -float(choice[i]))[:4]
        assert ids[row].tolist() == best
        assert torch.equal(weights[row], affinity[row, ids[row]])


@pytest.mark.parametrize("name", ["deepseek-v2", "deepseek-v3"])
def test_the_cache_of_latents_holds_nothing_else(name):
    """One vector of rank + rotated dimensions per token and layer: 48 numbers, where 4 heads of k and v are 240."""
    runner = runner_for(name)
    assert runner.kv_pool.shape.bytes_per_token == 2 * (32 + 16) * 4
    keys, values = runner.kv_pool.layer(0)
    assert keys.data_ptr() == values.data_ptr() and keys.shape[1:] == (1, 48)
