"""The engines of `benchmarks/cpu.py`, each in a process of its own: `python benchmarks/cpu_engines.py NAME FOLDER`.

A process reads one JSON list [verb, arguments...] a line and answers with one JSON value: seconds, or {"error": ...}.
So engines with other dependencies may run under another Python, and their runs can take turns. One thread each; seconds
are those of the processor, which on an idle machine are the wall's (CPU_BENCHMARK_CLOCK=wall).

Prompts are random ids of a seed and end-of-text is off: every engine does the same amount of work.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

clock = time.perf_counter if os.environ.get("CPU_BENCHMARK_CLOCK") == "wall" else time.process_time
SHARED, OWN, NEW, REQUESTS, WIDTH = 512, 32, 32, 64, 32  # the workload of requests with a shared prefix


def random_ids(count: int, length: int, vocab: int, seed: int = 0) -> list[list[int]]:
    ids: list[list[int]] = np.random.default_rng(seed).integers(3, vocab, (count, length)).tolist()
    return ids


# A JSON object of five fields; greedy, so that a model without sense ends nothing early. Most of its tokens are forced.
FIELDS = (
    '\\{"name": "[a-z]{5,10}", "age": [1-9][0-9], "city": "[a-z]{4,10}", "is_active": (true|false), '
    '"score": [0-9]\\.[0-9]\\}'
)


def texts(count: int) -> list[str]:
    return [f"Describe customer number {i + 1} of the shop as a JSON object:\n" for i in range(count)]


class Dslc:
    """The engine as programs drive it; `options` are EngineConfig's."""

    def __init__(self, folder: str, **options: Any) -> None:
        import torch

        torch.set_num_threads(1)
        from dslc.core.config import EngineConfig
        from dslc.runtime.engine import Engine
        from dslc.runtime.model_runner import ModelRunner

        given = {"dtype": "bfloat16", "max_running_requests": WIDTH, "max_total_tokens": 32768, "random_seed": 0}
        config = EngineConfig.of(model_path=folder, device="cpu", **{**given, **options})
        self.runner = ModelRunner(config)
        self.engine = Engine.of_parts(config, self.runner)
        self.vocab = self.runner.vocab_size

    def version(self) -> str:
        import torch

        import dslc

        return f"dslc {dslc.__version__}, torch {torch.__version__}"

    def decode(self, batch: int, context: int, steps: int) -> float:
        """Seconds a step, all of the engine's work in it. From the second call on the prompts come from the cache."""
        from dslc.core.request import GenRequest, Segment
        from dslc.core.sampling import SamplingParams

        params = SamplingParams(max_new_tokens=steps + 2, temperature=0.0, ignore_eos=True)
        prompts = random_ids(batch, context, self.vocab)
        events: list[Any] = []
        self.engine.submit(
            [GenRequest(id=str(i), segments=(Segment(ids=tuple(p)),), sampling=params) for i, p in enumerate(prompts)],
            events.append,
        )
        before = self.engine.counters().generated_tokens
        while self.engine.counters().generated_tokens - before < batch:  # prompts, and a first token of each
            self.engine.step()
        begin = clock()
        for _ in range(steps):
            self.engine.step()
        took = clock() - begin
        while self.engine.step():
            pass
        return took / steps

    def prefill(self, length: int) -> float:
        """Seconds from a prompt of that length, which is not in the cache, to its first token."""
        self.engine.flush_cache()
        return self._generate(random_ids(1, length, self.vocab), 1)

    def shared(self) -> float:
        """Seconds for all requests of the shared-prefix workload, from an empty cache."""
        self.engine.flush_cache()
        prefix = random_ids(1, SHARED, self.vocab, seed=1)[0]
        return self._generate([prefix + own for own in random_ids(REQUESTS, OWN, self.vocab, seed=2)], NEW)

    def json(self, count: int) -> float:
        """Seconds for so many programs that write an object, their prompts not in the cache."""
        import dslc

        if not hasattr(self, "write"):
            from dslc.core.text.load import load_tokenizer

            @dslc.function
            def write(s: Any, text: str) -> None:
                s += text
                s += dslc.gen("object", regex=FIELDS, temperature=0.0)

            self.write = write
            self.engine = self.engine.of_parts(self.engine.config, self.runner, load_tokenizer(self.runner.folder))
        self.engine.flush_cache()
        rows = [{"text": text} for text in texts(count)]
        begin = clock()
        states = (
            [self.write.run(**rows[0], backend=self.engine)]
            if count == 1
            else self.write.run_batch(rows, backend=self.engine)
        )
        took = clock() - begin
        for state in states:
            check_object(state["object"])
        return took

    def _generate(self, prompts: list[list[int]], new: int) -> float:
        begin = clock()
        params = {"max_new_tokens": new, "temperature": 0.0, "ignore_eos": True}
        self.engine.generate(input_ids=prompts, sampling_params=params)
        return clock() - begin


class Transformers:
    """transformers in bfloat16: a static cache and a hand-written greedy loop, the fastest of its ways on a CPU."""

    def __init__(self, folder: str) -> None:
        import torch
        import transformers

        torch.set_num_threads(1)
        self.torch, self.transformers = torch, transformers
        transformers.logging.set_verbosity_error()
        self.model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
        self.vocab = self.model.config.vocab_size

    def version(self) -> str:
        return f"transformers {self.transformers.__version__}, torch {self.torch.__version__}"

    def decode(self, batch: int, context: int, steps: int) -> float:
        """Seconds a step. What stands in the cache before is zeros: the work is the same."""
        torch = self.torch
        cache = self.transformers.StaticCache(config=self.model.config, max_cache_len=context + steps + 1)
        ids = torch.tensor(random_ids(batch, 1, self.vocab))
        with torch.inference_mode():
            for step in range(-1, steps):
                if step == 0:
                    begin = clock()
                place = torch.tensor([context + step])
                out = self.model(ids, past_key_values=cache, position_ids=place[None], cache_position=place)
                ids = out.logits[:, -1].argmax(-1, keepdim=True)
        return (clock() - begin) / steps

    def prefill(self, length: int) -> float:
        torch = self.torch
        ids = torch.tensor(random_ids(1, length, self.vocab))
        with torch.inference_mode():
            begin = clock()
            self.model(ids, logits_to_keep=1).logits.argmax(-1)
            return clock() - begin


class LlamaCpp:
    """llama.cpp in bfloat16 through its own C interface, its cache float16 as it is by default."""

    def __init__(self, folder: str, flash: str = "0") -> None:
        import llama_cpp

        self.module, self.c = llama_cpp, llama_cpp.llama_cpp
        self.c.llama_log_set(_quiet(self.c), None)
        params = self.c.llama_model_default_params()
        self.model = self.c.llama_model_load_from_file(str(gguf_of(folder)).encode(), params)
        if not self.model:
            raise OSError(f"llama.cpp cannot load {folder}")
        self.vocab = self.c.llama_vocab_n_tokens(self.c.llama_model_get_vocab(self.model))
        self.flash = int(flash)
        self.context: Any = None
        self.shape: tuple[int, int] = (0, 0)

    def version(self) -> str:
        return f"llama-cpp-python {self.module.__version__}, flash attention {'on' if self.flash else 'off'}"

    def _open(self, cells: int, sequences: int) -> None:
        """A context of so many cells that all sequences share."""
        if self.context is not None:
            self.c.llama_free(self.context)
        params = self.c.llama_context_default_params()
        params.n_ctx, params.n_seq_max, params.n_batch, params.n_ubatch = cells, sequences, 2048, 512
        params.n_threads = params.n_threads_batch = 1
        params.kv_unified, params.flash_attn_type = True, self.flash
        self.context = self.c.llama_init_from_model(self.model, params)
        self.memory = self.c.llama_get_memory(self.context)
        self.batch = self.c.llama_batch_init(2048, 0, 1)

    def _run(self, tokens: list[tuple[int, int, int]], wanted: set[int]) -> None:
        """Compute (token, position, sequence) triples, at most 2048 at once, with logits of the wanted places."""
        for first in range(0, len(tokens), 2048):
            part = tokens[first : first + 2048]
            batch = self.batch
            batch.n_tokens = len(part)
            for i, (token, place, sequence) in enumerate(part):
                batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, place, 1
                batch.seq_id[i][0], batch.logits[i] = sequence, int(first + i in wanted)
            if self.c.llama_decode(self.context, batch):
                raise RuntimeError("llama_decode failed")

    def _greedy(self, count: int) -> list[int]:
        return [
            int(np.ctypeslib.as_array(self.c.llama_get_logits_ith(self.context, i), (self.vocab,)).argmax())
            for i in range(count)
        ]

    def decode(self, batch: int, context: int, steps: int) -> float:
        """Seconds a step; the prompts are computed on the first call of a shape."""
        if self.shape != (batch, context):
            self._open(batch * (context + steps + 1), batch)
            self.shape = (batch, context)
            ids = random_ids(1, context, self.vocab)[0]
            self._run([(token, place, 0) for place, token in enumerate(ids)], set())
            size = self.c.llama_state_seq_get_size(self.context, 0)
            state = (ctypes.c_uint8 * size)()
            self.c.llama_state_seq_get_data(self.context, state, size, 0)
            for sequence in range(1, batch):  # cells of its own for each: the values do not matter to the time
                if not self.c.llama_state_seq_set_data(self.context, state, size, sequence):
                    raise RuntimeError("llama_state_seq_set_data failed")
        ids = [5] * batch
        for step in range(-1, steps):
            if step == 0:
                begin = clock()
            self._run([(token, context + step + 1, i) for i, token in enumerate(ids)], set(range(batch)))
            ids = self._greedy(batch)
        took = (clock() - begin) / steps
        for sequence in range(batch):
            self.c.llama_memory_seq_rm(self.memory, sequence, context, -1)
        return took

    def prefill(self, length: int) -> float:
        self.shape = (0, 0)
        self._open(length + 1, 1)
        ids = random_ids(1, length, self.vocab)[0]
        begin = clock()
        self._run([(token, place, 0) for place, token in enumerate(ids)], {length - 1})
        return clock() - begin

    def shared(self) -> float:
        """Batches of WIDTH sequences; the prefix is computed once for each batch and copied by reference."""
        self.shape = (0, 0)
        self._open(SHARED + WIDTH * (OWN + NEW), WIDTH)
        prefix = random_ids(1, SHARED, self.vocab, seed=1)[0]
        own = random_ids(REQUESTS, OWN, self.vocab, seed=2)
        begin = clock()
        for first in range(0, REQUESTS, WIDTH):
            self.c.llama_memory_clear(self.memory, True)
            self._run([(token, place, 0) for place, token in enumerate(prefix)], set())
            for sequence in range(1, WIDTH):
                self.c.llama_memory_seq_cp(self.memory, 0, sequence, 0, SHARED)
            tokens = [
                (token, SHARED + place, sequence)
                for sequence, ids in enumerate(own[first : first + WIDTH])
                for place, token in enumerate(ids)
            ]
            last = [i for i, (_, place, _) in enumerate(tokens) if place == SHARED + OWN - 1]
            self._run(tokens, set(last))
            logits = [self.c.llama_get_logits_ith(self.context, i) for i in last]
            ids = [int(np.ctypeslib.as_array(row, (self.vocab,)).argmax()) for row in logits]
            for step in range(NEW - 1):
                at = SHARED + OWN + step
                self._run([(token, at, i) for i, token in enumerate(ids)], set(range(WIDTH)))
                ids = self._greedy(WIDTH)
        return clock() - begin


class Guidance:
    """guidance over llama.cpp: forced text is not sampled; one program at a time."""

    def __init__(self, folder: str) -> None:
        import guidance
        import llama_cpp

        self.module, self.llama = guidance, llama_cpp
        path = str(gguf_of(folder))
        self.model = guidance.models.LlamaCpp(
            path, n_ctx=2048, n_threads=1, n_threads_batch=1, echo=False, verbose=False
        )

    def version(self) -> str:
        return f"guidance {self.module.__version__}, llama-cpp-python {self.llama.__version__}"

    def json(self, count: int) -> float:
        begin = clock()
        for text in texts(count):
            state = self.model + text + self.module.gen("object", regex=FIELDS, temperature=0.0)
            check_object(state["object"])
        return clock() - begin


class Outlines:
    """outlines over transformers, all programs as one batch; its default way to masks."""

    def __init__(self, folder: str) -> None:
        import outlines
        import torch
        import transformers

        torch.set_num_threads(1)
        transformers.logging.set_verbosity_error()
        self.module, self.transformers = outlines, transformers
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        tokenizer.padding_side = "left"
        self.model = outlines.from_transformers(model, tokenizer)
        self.generator = outlines.Generator(self.model, outlines.regex(FIELDS))

    def version(self) -> str:
        from importlib.metadata import version

        return f"outlines {version('outlines')}, transformers {self.transformers.__version__}"

    def json(self, count: int) -> float:
        begin = clock()
        found = self.generator.batch(texts(count), max_new_tokens=120, do_sample=False)
        took = clock() - begin
        for text in found:
            check_object(text)
        return took


def check_object(text: str) -> None:
    """Raise ValueError unless it is a whole object of the five fields: else the work was another."""
    if len(json.loads(text)) != 5:
        raise ValueError(f"{text!r} has not five fields")


def _quiet(c: Any) -> Any:
    """A log callback that says nothing; kept, because llama.cpp keeps its address."""
    global _SILENCE
    _SILENCE = c.llama_log_callback(lambda level, text, data: None)
    return _SILENCE


_SILENCE: Any = None


def gguf_of(folder: str) -> Path:
    """The checkpoint as llama.cpp reads it, in bfloat16; written beside it on first use."""
    import gguf
    from safetensors import safe_open

    config = json.loads((Path(folder) / "config.json").read_text("utf-8"))
    path = Path(folder) / "model.gguf"
    if path.exists():
        return path
    made = path.with_name(f"model.gguf-{os.getpid()}")
    writer = gguf.GGUFWriter(made, "llama")
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_rope_dimension_count(config["hidden_size"] // heads)
    writer.add_vocab_size(config["vocab_size"])
    add_vocabulary(writer, Path(folder))
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    with safe_open(Path(folder) / "model.safetensors", "pt") as stored:
        for name in stored.keys():  # noqa: SIM118 - no mapping
            tensor = stored.get_tensor(name).float()
            if name.endswith(("q_proj.weight", "k_proj.weight")):  # rotated pairs stand beside each other there
                num = heads if "q_proj" in name else kv_heads
                tensor = tensor.view(num, 2, -1, tensor.shape[1]).transpose(1, 2).reshape(tensor.shape)
            values = tensor.numpy()
            if values.ndim == 1:
                writer.add_tensor(names.get_name(name, (".weight",)), values)
            else:
                packed = gguf.quantize(values, gguf.GGMLQuantizationType.BF16)
                kind = gguf.GGMLQuantizationType.BF16
                writer.add_tensor(names.get_name(name, (".weight",)), packed, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    made.replace(path)
    return path


def add_vocabulary(writer: Any, folder: Path) -> None:
    """The tokenizer that stands beside the checkpoint; none for those that are fed with ids."""
    path = folder / "tokenizer.json"
    if not path.exists():
        writer.add_tokenizer_model("none")
        return
    stored = json.loads(path.read_text("utf-8"))
    ids = stored["model"]["vocab"]
    special = {token["id"]: token["content"] for token in stored["added_tokens"]}
    names = {number: name for name, number in ids.items()} | special
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([names[i] for i in range(len(names))])
    writer.add_token_types([3 if i in special else 1 for i in range(len(names))])  # control, normal
    merges = stored["model"]["merges"]
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)


ENGINES: dict[str, Any] = {
    "dslc": Dslc,
    "dslc deterministic, torch only": lambda folder: Dslc(folder, deterministic=True),
    "dslc deterministic": lambda folder: Dslc(folder, deterministic=True),
    "transformers": Transformers,
    "llama.cpp": LlamaCpp,
    "guidance + llama.cpp": Guidance,
    "outlines": Outlines,
    "llama.cpp, flash": lambda folder: LlamaCpp(folder, flash="1"),
}


def main() -> None:
    sys.path.remove(str(Path(__file__).parent))  # libraries look for packages that have names of files here
    answers = sys.stdout
    sys.stdout = sys.stderr  # whatever a library prints is no answer
    try:
        engine = ENGINES[sys.argv[1]](*sys.argv[2:])
    except Exception as error:
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}), file=answers, flush=True)
        return
    print(json.dumps(engine.version()), file=answers, flush=True)
    for line in sys.stdin:
        verb, *arguments = json.loads(line)
        try:
            answer = getattr(engine, verb)(*arguments)
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
