"""The engines of `benchmarks/cpu.py`, each in a process of its own: `python benchmarks/cpu_engines.py NAME MODEL_FOLDER`.

A process reads one JSON list [verb, arguments...] a line and answers with one JSON value: seconds, text, or {"error": ...}.
So engines with other dependencies may run under another Python, and their runs can take turns. One thread each.

Prompts are random ids of a seed and end-of-text is off: every engine does the same amount of work.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import numpy as np

SHARED, OWN, NEW, REQUESTS, WIDTH = 512, 32, 32, 64, 32  # the workload of requests with a shared prefix


def random_ids(count: int, length: int, vocab: int, seed: int = 0) -> list[list[int]]:
    ids: list[list[int]] = np.random.default_rng(seed).integers(3, vocab, (count, length)).tolist()
    return ids


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

        params = SamplingParams(max_new_tokens=steps + 1, temperature=0.0, ignore_eos=True)
        prompts = random_ids(batch, context, self.vocab)
        events: list[Any] = []
        self.engine.submit(
            [GenRequest(id=str(i), segments=(Segment(ids=tuple(p)),), sampling=params) for i, p in enumerate(prompts)],
            events.append,
        )
        took: list[float] = []
        while True:
            begin = time.perf_counter()
            more = self.engine.step()
            if not more:
                break
            took.append(time.perf_counter() - begin)
        decodes = took[-steps:]
        return sum(decodes) / len(decodes)

    def prefill(self, length: int) -> float:
        """Seconds from a prompt of that length, which is not in the cache, to its first token."""
        self.engine.flush_cache()
        return self._generate(random_ids(1, length, self.vocab), 1)

    def shared(self) -> float:
        """Seconds for all requests of the shared-prefix workload, from an empty cache."""
        self.engine.flush_cache()
        prefix = random_ids(1, SHARED, self.vocab, seed=1)[0]
        return self._generate([prefix + own for own in random_ids(REQUESTS, OWN, self.vocab, seed=2)], NEW)

    def _generate(self, prompts: list[list[int]], new: int) -> float:
        begin = time.perf_counter()
        params = {"max_new_tokens": new, "temperature": 0.0, "ignore_eos": True}
        self.engine.generate(input_ids=prompts, sampling_params=params)
        return time.perf_counter() - begin


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
                    begin = time.perf_counter()
                place = torch.tensor([context + step])
                out = self.model(ids, past_key_values=cache, position_ids=place[None], cache_position=place)
                ids = out.logits[:, -1].argmax(-1, keepdim=True)
        return (time.perf_counter() - begin) / steps

    def prefill(self, length: int) -> float:
        torch = self.torch
        ids = torch.tensor(random_ids(1, length, self.vocab))
        with torch.inference_mode():
            begin = time.perf_counter()
            self.model(ids, logits_to_keep=1).logits.argmax(-1)
            return time.perf_counter() - begin


ENGINES: dict[str, Any] = {
    "dslc": Dslc,
    "dslc deterministic": lambda folder: Dslc(folder, deterministic=True),
    "transformers": Transformers,
}


def main() -> None:
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
