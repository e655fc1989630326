"""Programs on a tiny random-weight model, against transformers computing the same by itself."""

import math

import numpy as np
import pytest
import torch
from support.tiny_models import reference_greedy, reference_model, tiny_checkpoint, tiny_tokenizer

import dslc

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def path():
    return tiny_checkpoint("llama")


@pytest.fixture(scope="module")
def engine(path):
    with dslc.Engine(model_path=str(path), dtype="float32", max_total_tokens=8192) as engine:
        yield engine


def log_softmax_rows(path, ids):
    with torch.inference_mode():
        logits = reference_model(path)(torch.tensor([ids])).logits[0].double().numpy()
    return (
        logits
        - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True))
        - logits.max(-1, keepdims=True)
    )


def token_logprobs(path, prompt, choice):
    rows = log_softmax_rows(path, [*prompt, *choice])
    return [float(rows[len(prompt) + t - 1][token]) for t, token in enumerate(choice)]


@pytest.mark.parametrize("compiled", [False, True])
def test_a_completion_program_is_what_transformers_generates(path, engine, compiled):
    @dslc.function
    def program(s, q):
        s += "Question: " + q + "\nAnswer:"
        s += dslc.gen("a", max_tokens=12, ignore_eos=True)
        s += "\nSo the answer is"
        s += dslc.gen("b", max_tokens=8, ignore_eos=True)

    tokenizer = tiny_tokenizer()
    state = program.run(q="what is the capital?", backend=engine, temperature=0, compiled=compiled)
    ids = tokenizer("Question: what is the capital?\nAnswer:").input_ids
    for name, count, text in (("a", 12, "\nSo the answer is"), ("b", 8, "")):
        new, margin = reference_greedy(path, ids, count)
        assert margin > 1e-4
        assert state.get_meta_info(name)["output_ids"] == new
        ids = ids + new + tokenizer(text, add_special_tokens=False).input_ids
    assert state["a"] == tokenizer.decode(state.get_meta_info("a")["output_ids"], skip_special_tokens=True)


def test_a_chat_program_sends_the_templates_ids(path, engine):
    @dslc.function
    def program(s):
        s += dslc.system("You are helpful.")
        s += dslc.user("Write a city.")
        s += dslc.assistant(dslc.gen("a", max_tokens=6))
        s += dslc.user("And its country?")
        s += dslc.assistant(dslc.gen("b", max_tokens=6))

    tokenizer = tiny_tokenizer()
    state = program.run(backend=engine, temperature=0)
    messages = state.messages()
    assert state.text() == tokenizer.apply_chat_template(messages, tokenize=False)
    first = tokenizer.apply_chat_template(messages[:2], add_generation_prompt=True, tokenize=True)
    ids = first if isinstance(first, list) else list(first["input_ids"])
    new, _ = reference_greedy(path, ids, 6)
    stop = next((i + 1 for i, token in enumerate(new) if token in engine.tokenizer.eos_ids), 6)
    assert state.get_meta_info("a")["output_ids"] == new[:stop]


CHOICES = [
    (" yes", " no", " maybe"), ("yes", "no"), (" a", " a b", " a b c"), ("The answer", "The quick", "Thought"),
    ("10", "100", "1000"), (" {", ' {"name"'), ("é", "日本", "🙂"), (" x",), (" yes", " yes", " no"),
]  # fmt: skip
PROMPTS = ["The quick brown fox", "Question: is it? Answer:", "Is 10 + 25 = 35?\n", "Th", 'A list: ["a', "  two  "]


def canonical(tokenizer, prompt, choices):
    """The ids that all (prompt + choice) share inside the prompt, and what is left of each."""
    whole = [tokenizer(prompt + choice, add_special_tokens=False).input_ids for choice in choices]
    shared = 0
    while all(len(ids) > shared + 1 for ids in whole) and len({ids[shared] for ids in whole}) == 1:
        shared += 1
    while not prompt.startswith(tokenizer.decode(whole[0][:shared])):
        shared -= 1
    return whole[0][:shared], [ids[shared:] for ids in whole]


@pytest.mark.parametrize("choices", CHOICES)
@pytest.mark.parametrize("prompt", PROMPTS)
def test_select_scores_are_transformers(path, engine, prompt, choices):
    fixed, sequences = canonical(tiny_tokenizer(), prompt, choices)
    given = [token_logprobs(path, fixed, ids) if fixed else None for ids in sequences]
    start = engine.tokenizer.eos_ids[0]

    for method in (
        dslc.token_length_normalized,
        dslc.greedy_token_selection,
        dslc.unconditional_likelihood_normalized,
    ):

        @dslc.function
        def program(s, method=method):
            s += prompt
            s += dslc.select("c", list(choices), choices_method=method)

        if not fixed:
            with pytest.raises(dslc.RequestError, match="some text before a select"):
                program.run(backend=engine)
            continue
        state = program.run(backend=engine)
        info = state.get_meta_info("c")
        for got, want, ids in zip(info["input_token_logprobs"], given, sequences, strict=True):
            assert [token for _, token, _ in got] == ids
            assert np.allclose([value for value, _, _ in got], want, atol=1e-4)
        means = [sum(row) / len(row) for row in given]
        assert np.allclose(info["normalized_prompt_logprobs"], means, atol=1e-4)
        if method is dslc.token_length_normalized:
            scores = means
        elif method is dslc.unconditional_likelihood_normalized:
            alone = [token_logprobs(path, [start], ids) for ids in sequences]
            scores = [float(np.mean(np.subtract(g, a))) for g, a in zip(given, alone, strict=True)]
            assert np.allclose(info["normalized_unconditional_prompt_logprobs"], scores, atol=1e-4)
        else:
            scores = greedy_scores(given)
        best = max(scores)
        assert scores[choices.index(state["c"])] > best - 1e-4
        assert state.text() == prompt + state["c"]


def greedy_scores(rows):
    """Keep the likeliest next token, token by token; a choice that has ended counts with its mean."""
    length = max(map(len, rows))
    table = np.array([[*row, *[np.mean(row)] * (length - len(row))] for row in rows])
    kept = list(range(len(rows)))
    for t in range(length):
        best = table[kept, t].max()
        kept = [i for i in kept if abs(table[i, t] - best) < 1e-4]
        if len(kept) == 1:
            break
    return [0.0 if i in kept else -math.inf for i in range(len(rows))]


def test_a_select_is_one_pass_over_the_trie(engine):
    @dslc.function
    def program(s):
        s += "The answer to this question is"
        s += dslc.select("c", [" yes and no", " yes and more", " yes", " never"])

    program.run(backend=engine)
    engine.flush_cache()
    before = engine.counters()
    state = program.run(backend=engine)
    counted = engine.counters() - before
    sequences = [[token for _, token, _ in row] for row in state.get_meta_info("c")["input_token_logprobs"]]
    # The last token of a choice is looked up in the logits before it; only what something follows is computed.
    inner = {tuple(ids[:k]) for ids in sequences for k in range(1, len(ids))}
    assert counted.requests == 1 and counted.scored_tokens == len(inner) and counted.forwards <= 2


def test_temperature_draws_from_the_softmax_of_the_scores(engine):
    @dslc.function
    def program(s):
        s += "Pick one:"
        s += dslc.select("c", [" a", " b", " c"], temperature=2.0)

    states = program.run_batch([{}] * 600, backend=engine, seed=5)
    scores = np.array(states[0].get_meta_info("c")["normalized_prompt_logprobs"]) / 2.0
    expected = np.exp(scores) / np.exp(scores).sum() * len(states)
    counted = np.array([sum(state["c"] == c for state in states) for c in (" a", " b", " c")])
    assert (((counted - expected) ** 2) / expected).sum() < 13.8  # chi-square, 2 degrees of freedom, p = 0.001
    again = program.run_batch([{}] * 600, backend=engine, seed=5)
    assert [s["c"] for s in again] == [s["c"] for s in states]


def test_joined_text_continues_as_if_it_had_been_written(path, engine):
    @dslc.function
    def joined(s):
        s += "Some facts."
        forks = s.fork(2)
        forks += [" First:", " Second:"]
        forks += dslc.gen("x", max_tokens=5, ignore_eos=True)
        forks.join("concate_and_append")
        s += " So:" + dslc.gen("end", max_tokens=4, ignore_eos=True, return_logprob=True)

    state = joined.run(backend=engine, temperature=0)
    info = state.get_meta_info("end")
    before = state.text()[: -len(state["end"])]
    prompt = tiny_tokenizer()(before, add_special_tokens=False).input_ids
    assert prompt[-1] == tiny_tokenizer()(" So:", add_special_tokens=False).input_ids[-1]
    if len(prompt) == info["prompt_tokens"]:  # what was sampled is canonical here
        want = token_logprobs(path, prompt, info["output_ids"])
        assert np.allclose([value for value, _, _ in info["output_token_logprobs"]], want, atol=1e-4)
    else:
        assert len(prompt) < info["prompt_tokens"]


def test_forks_share_their_parents_cache(engine):
    @dslc.function
    def program(s):
        s += "A common beginning that is long enough to count. " * 4
        s += dslc.gen("x", max_tokens=4, ignore_eos=True)
        forks = s.fork(4)
        forks += lambda i: f" Branch {i}:"
        forks += dslc.gen("y", max_tokens=4, ignore_eos=True)
        forks.join()

    engine.flush_cache()
    before = engine.counters()
    state = program.run(backend=engine, temperature=0)
    counted = engine.counters() - before
    first = state.get_meta_info("x")["prompt_tokens"]
    longest = max(info["prompt_tokens"] for info in state.get_meta_info("y"))
    # The parent's prompt and output once (its last token may be computed again), then the branches' own suffixes.
    assert counted.prefilled_tokens <= first + 4 * (longest - first - 4 + 2)
    assert counted.prompt_tokens > 3 * first


def test_gen_n_prefills_its_prompt_once(engine):
    @dslc.function
    def program(s, prompt):
        s += prompt
        s += dslc.gen("x", n=4, max_tokens=6, ignore_eos=True)

    prompt = "Tell me a story about a fox and a dog that met"
    engine.flush_cache()
    before = engine.counters()
    greedy = program.run(prompt=prompt, backend=engine, temperature=0)
    counted = engine.counters() - before
    assert len(set(greedy["x"])) == 1
    assert counted.prefilled_tokens <= greedy.get_meta_info("x")[0]["prompt_tokens"] + 3
    sampled = [program.run(prompt=prompt, backend=engine, temperature=1.5, seed=3)["x"] for _ in range(2)]
    assert sampled[0] == sampled[1] and len(set(sampled[0])) > 1


def test_batches_equal_singles_and_plans_equal_bodies(engine):
    @dslc.function
    def program(s, q):
        s += f"Q: {q}\nA:"
        s += dslc.gen("a", max_tokens=5, ignore_eos=True)
        s += dslc.select("c", [" yes", " no"])

    rows = [{"q": f"is {i} even"} for i in range(16)]
    batch = program.run_batch(rows, backend=engine, temperature=0, compiled=False)
    plans = program.run_batch(rows, backend=engine, temperature=0, compiled=True)
    singles = [program.run(**row, backend=engine, temperature=0) for row in rows]
    assert [s.text() for s in batch] == [s.text() for s in plans] == [s.text() for s in singles]


def test_streams_and_event_loops_on_the_engine(engine):
    import asyncio

    @dslc.function
    def program(s, q):
        s += f"Q: {q}\nA:" + dslc.gen("a", max_tokens=24, ignore_eos=True)

    whole = program.run(q="why", backend=engine, temperature=0)
    state = program.run(q="why", backend=engine, temperature=0, stream=True)
    pieces = list(state.text_iter("a"))
    assert "".join(pieces) == whole["a"] and len(pieces) > 3

    async def main():
        return await asyncio.gather(*(program.arun(q="why", backend=engine, temperature=0) for _ in range(4)))

    assert {state.text() for state in asyncio.run(main())} == {whole.text()}
    left = program.run(q="why", backend=engine, stream=True, max_new_tokens=4000)
    for _ in left.text_iter():
        break
    left.error()
    engine.wait(lambda: True)
    engine.check_integrity()


def test_spaces_between_special_tokens_are_never_there(path, engine):
    """False is what the engine does, and what fast tokenizers do whichever is said; True is refused at its line."""

    @dslc.function
    def program(s, spaces):
        s += "Question:"
        s += dslc.gen(
            "a", max_tokens=24, ignore_eos=True, skip_special_tokens=False, spaces_between_special_tokens=spaces
        )

    tokenizer = tiny_tokenizer()
    special = tokenizer.all_special_ids[0]
    for spaces in (None, False):
        state = program.run(spaces, backend=engine, temperature=0, logit_bias={special: 100.0})
        ids = state.get_meta_info("a")["output_ids"]
        assert ids.count(special) > 2
        for said in (True, False):
            whole = tokenizer.decode(ids, skip_special_tokens=False, spaces_between_special_tokens=said)
            assert state["a"] == whole
    with pytest.raises(dslc.RequestError, match=r"test_with_a_model.py:\d+: spaces_between_special_tokens: True puts"):
        program.run(True, backend=engine)
