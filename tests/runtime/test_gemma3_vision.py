"""Gemma 3 with pictures: whose rows see each other, so that no piece of a prompt ends inside one. (What all models that
see have in common, this one too, is in test_media_models.)"""

from __future__ import annotations

import json
import shutil
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.tiny_vision import picture, tiny_vision, vision_greedy, vision_logprobs
from support.tokenizer_kinds import backend as tokenizer_backend

import dslc
from dslc.core.errors import ModelLoadError
from dslc.core.media import image_ref
from dslc.core.request import GenRequest, LogprobWish, Segment
from dslc.core.sampling import SamplingParams
from dslc.core.text.load import load_tokenizer
from dslc.runtime.intake import Intake
from dslc.runtime.media.library import MediaLibrary
from dslc.runtime.media.picture import Processed
from dslc.runtime.model_config import ModelConfig
from dslc.runtime.models.gemma3_vision import Gemma3Processor

torch.set_num_threads(1)
NUM = 8
PROMPT: list[Any] = ["Compare ", picture(0), " with ", picture(1, (64, 30)), " Which is larger?"]


@pytest.fixture(scope="module")
def path():
    return tiny_vision("gemma3")


def engine_of(path: Any, **options: Any) -> dslc.Engine:
    defaults = {"max_total_tokens": 4096, "max_running_requests": 8, "random_seed": 0}
    engine = dslc.Engine(model_path=str(path), **{**defaults, **options})
    engine.check_when_idle = True
    return engine


def request_of(parts: list[Any], num: int = NUM, name: str = "r") -> GenRequest:
    return GenRequest(
        id=name,
        segments=tuple(Segment(text=p) if isinstance(p, str) else Segment(media=image_ref(p)) for p in parts),
        sampling=SamplingParams(max_new_tokens=num, temperature=0.0, ignore_eos=True),
        logprobs=LogprobWish(),
    )


def run(engine: dslc.Engine, parts: list[Any], num: int = NUM) -> Any:
    ended: list[Any] = []
    engine.submit([request_of(parts, num)], lambda event: ended.append(event) if hasattr(event, "outputs") else None)
    engine.wait(lambda: bool(ended))
    return ended[0]


def watched(engine: dslc.Engine) -> list[tuple[int, int, tuple[tuple[int, int], ...]]]:
    """(start, end, its request's pictures) of every piece of a prompt that the engine computes from now on."""
    seen: list[Any] = []
    launch = engine.worker.launch

    def spy(batch: Any) -> Any:
        for extend in batch.extends:
            pictures = tuple((placed.start, placed.end) for placed in extend.seq.request.media)
            seen.append((extend.start, extend.end, pictures))
        return launch(batch)

    engine.worker.launch = spy  # type: ignore[method-assign]
    return seen


@pytest.mark.parametrize("size", [1, 3, 7, 16, 20, 27])
def test_no_piece_ends_inside_a_picture_and_chunks_change_nothing(path, size):
    wanted, margin = vision_greedy(path, PROMPT, NUM)
    assert margin > 1e-3
    with engine_of(path, chunked_prefill_size=size) as engine:
        seen = watched(engine)
        event = run(engine, PROMPT)
    assert event.outputs[0].token_ids == tuple(wanted)
    found = [token.logprob for token in event.outputs[0].logprobs]
    assert found == pytest.approx(vision_logprobs(path, PROMPT, wanted), abs=1e-4)
    assert len(seen) > 2
    for start, end, pictures in seen:
        assert len(pictures) == 2 and not any(first < end < last for first, last in pictures)
        held = [last - first for first, last in pictures if start <= first and last <= end]
        assert end - start <= max(size, sum(held[:1]))  # a picture may be more than a forward's budget, nothing else


@pytest.mark.parametrize("page_size", [1, 4])
def test_requests_that_have_to_give_way_come_back_the_same(path, page_size):
    """Little memory: prompts wait, are retracted in mid-answer, and find parts of their pictures in the cache."""
    prompts = [["A", picture(seed), "and ", picture(seed + 1), " b" * seed] for seed in range(4)]
    wanted = [vision_greedy(path, parts, 16)[0] for parts in prompts]
    options = {"max_total_tokens": 160, "chunked_prefill_size": 11, "schedule_conservativeness": 0.01}
    with engine_of(path, page_size=page_size, **options) as engine:
        ended: dict[str, Any] = {}
        requests = [request_of(parts, 16, str(number)) for number, parts in enumerate(prompts)]

        def sink(event: Any) -> None:
            if hasattr(event, "outputs") or hasattr(event, "error"):
                ended[event.request_id] = event

        engine.submit(requests, sink)
        engine.wait(lambda: len(ended) == len(requests))
        assert [list(ended[request.id].outputs[0].token_ids) for request in requests] == wanted
        assert engine.counters().preemptions > 0
        engine.check_integrity()


def test_seeing_only_backwards_would_give_something_else(path, monkeypatch):
    """That the tests here can fail."""
    monkeypatch.setattr("dslc.runtime.media.features._last_keys", lambda batch: None)
    with engine_of(path) as engine:
        event = run(engine, PROMPT)
    found = [token.logprob for token in event.outputs[0].logprobs]
    wanted = vision_logprobs(path, PROMPT, list(event.outputs[0].token_ids))
    assert max(abs(a - b) for a, b in zip(found, wanted, strict=True)) > 1e-2


@pytest.mark.parametrize("deterministic", [False, True])
def test_a_cache_that_ends_inside_a_picture_is_exact(path, deterministic):
    """What is cached of a picture saw all of it: the rest is computed as it would have been."""
    wanted, _ = vision_greedy(path, PROMPT, NUM)
    with engine_of(path, deterministic=deterministic) as engine:
        seen = watched(engine)
        first = run(engine, PROMPT)
        (_, second_picture) = seen[0][2]
        logprobs = [token.logprob for token in first.outputs[0].logprobs]
        inside = 0
        for _ in range(60):
            cache = engine.scheduler.memory.cache
            engine.scheduler.memory.allocator.free(cache.evict(3))
            del seen[:]
            event = run(engine, PROMPT)
            inside += seen[0][0] in range(second_picture[0] + 1, second_picture[1])
            assert event.outputs[0].token_ids == tuple(wanted)
            again = [token.logprob for token in event.outputs[0].logprobs]
            assert again == logprobs if deterministic else again == pytest.approx(logprobs, abs=1e-4)
            # What this run has put back is evicted again, and a bit more.
            held = event.num_prompt_tokens + NUM - 1 - seen[0][0]
            engine.scheduler.memory.allocator.free(cache.evict(held))
            if seen[0][0] == 0:
                break
        assert inside >= 3


def test_line_breaks_join_those_of_the_text_as_in_transformers(tmp_path):
    """Gemma has one token for each run of line breaks; its processor writes two around each picture."""
    import transformers as t

    backend = tokenizer_backend("gemma")
    marks = ["<start_of_image>", "<image_soft_token>", "<end_of_image>"]
    backend.add_special_tokens(marks)
    names = dict(zip(("boi_token", "image_token", "eoi_token"), marks, strict=True))
    theirs = t.PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", extra_special_tokens=names)
    images = t.Gemma3ImageProcessorPil(size={"height": 32, "width": 32})
    reference = t.Gemma3Processor(images, theirs, image_seq_length=4)
    theirs.save_pretrained(tmp_path)
    images.save_pretrained(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    start, soft, end = (tokenizer.special_id(mark) for mark in marks)
    library = MediaLibrary(Gemma3Processor(tmp_path, 4, start, end), 10_000)
    intake = Intake.of(tokenizer, tokenizer.vocab_size, 4096, 4096, "none", media=library)
    for text in (
        "Look: <start_of_image> What is it?",
        "user\n<start_of_image>What?",
        "user\n\n\n<start_of_image>\nWhat?\n",
        "<start_of_image><start_of_image>",
        "<start_of_image>",
        "a <start_of_image>\n\n<start_of_image>\n\n\nb\n\nc",
        "\n<start_of_image>\n",
        " <start_of_image>  x" + "the quick brown fox " * 20 + "\n<start_of_image>\n" + "jumps over the dog\n" * 20,
    ):
        shown = text.count(marks[0])
        wanted = reference(text=text, images=[[picture(0)] * shown], add_special_tokens=False)["input_ids"][0]
        assert wanted.count(soft) == 4 * shown
        for as_ids in (False, True):
            segments: list[Segment] = []
            for number, part in enumerate(text.split(marks[0])):
                segments += [Segment(media=image_ref(picture(0)))] * (number > 0)
                if part:
                    segments.append(Segment(ids=tuple(tokenizer.encode(part))) if as_ids else Segment(text=part))
            placed: list[Any] = []
            found = intake._prompt_ids(GenRequest(id="x", segments=tuple(segments)), placed).tolist()
            assert [soft if token >= 10_000 else token for token in found] == wanted, (text, as_ids)
            assert all(found[p.start : p.end] == [p.picture.id] * 4 for p in placed) and len(placed) == shown


def test_what_a_picture_that_is_seen_as_a_whole_needs():
    with pytest.raises(ValueError, match="needs an id after it"):
        Processed({}, 4, is_whole=True)


def test_checkpoints_with_the_names_of_either_age_load(path, tmp_path):
    """transformers has renamed the parts; the files on the hub have the first names."""
    tensors = load_file(path / "model.safetensors")
    ages = [
        {"language": "language_model.model.", "tower": "vision_tower.vision_model.", "projector": ""},
        {"language": "model.language_model.", "tower": "model.vision_tower.vision_model.", "projector": "model."},
        {"language": "model.language_model.", "tower": "model.vision_tower.", "projector": "model."},
    ]
    wanted, _ = vision_greedy(path, PROMPT, NUM)
    for number, age in enumerate(ages):
        folder = tmp_path / str(number)
        shutil.copytree(path, folder)
        renamed = {}
        for name, tensor in tensors.items():
            if "multi_modal_projector" in name:
                new = age["projector"] + name[name.index("multi_modal_projector") :]
            elif "vision_tower" in name:
                new = age["tower"] + name.split("vision_tower.")[1].removeprefix("vision_model.")
            else:
                new = age["language"] + name.split("language_model.")[1].removeprefix("model.")
            renamed[new] = tensor.clone()
        renamed[age["tower"] + "head.probe"] = torch.zeros(1, 1, 32)  # pools a picture to one vector: not used
        save_file(renamed, folder / "model.safetensors", {"format": "pt"})
        with engine_of(folder) as engine:
            assert run(engine, PROMPT).outputs[0].token_ids == tuple(wanted)


def changed(path: Any, folder: Any, file: str = "config.json", **fields: Any) -> Any:
    shutil.copytree(path, folder)
    values = json.loads((folder / file).read_text())
    for name, value in fields.items():
        inner, _, last = name.rpartition("__")
        (values[inner] if inner else values)[last] = value
    (folder / file).write_text(json.dumps(values))
    return folder


@pytest.mark.parametrize(
    ("file", "fields", "message"),
    [
        ("config.json", {"mm_tokens_per_image": 15}, "'mm_tokens_per_image' must be a square"),
        ("config.json", {"mm_tokens_per_image": 9}, "side divides the 8 patches"),
        ("config.json", {"text_config__model_type": "llama"}, "must be 'gemma3_text', not 'llama'"),
        ("config.json", {"text_config__use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("preprocessor_config.json", {"do_pan_and_scan": True}, "do_pan_and_scan is true"),
    ],
)
def test_what_is_not_known_is_refused_by_its_field(path, tmp_path, file, fields, message):
    with pytest.raises(ModelLoadError, match=message):
        engine_of(changed(path, tmp_path / "model", file, **fields))


def test_published_configurations_leave_out_what_transformers_knows(tmp_path):
    (tmp_path / "config.json").write_text(
        '{"architectures": ["Gemma3ForConditionalGeneration"], "boi_token_index": 255999, "eoi_token_index": 256000,'
        ' "eos_token_id": [1, 106], "image_token_index": 262144, "mm_tokens_per_image": 256, "model_type": "gemma3",'
        ' "text_config": {"hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text",'
        ' "num_hidden_layers": 34, "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024},'
        ' "torch_dtype": "bfloat16", "vision_config": {"hidden_size": 1152, "image_size": 896, "patch_size": 14,'
        ' "intermediate_size": 4304, "model_type": "siglip_vision_model", "num_attention_heads": 16,'
        ' "num_hidden_layers": 27, "vision_use_head": false}}'
    )
    config = ModelConfig.load(tmp_path)
    assert (config.num_heads, config.num_kv_heads, config.head_dim, config.vocab_size) == (8, 4, 256, 262_208)
    assert config.rope.theta == 1e6 and config.rope.factor == 8 and config.local_rope is not None
    assert config.local_rope.theta == 1e4 and config.local_rope.factor == 1
    assert [i for i, window in enumerate(config.layer_windows) if window is None] == [5, 11, 17, 23, 29]
    assert config.eos_ids == (1, 106) and config.tie_word_embeddings and config.dtype == "bfloat16"
