"""Train dslc-tiny: `python -m dslc.runtime.builtin.train --out FOLDER`.

Everything follows from the seed: corpus, packing, order, schedule. A checkpoint is written
every few minutes; running the same command again goes on from it. The method is told in docs/builtin-model.md.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

from . import model_path, tokenizer
from .corpus import END, FAMILIES, IM_END, LONG, Document, Family, draw
from .evaluate import evaluate, markdown
from .network import Muon, Network, Shape, rope_table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

MAX_LEN = 1024
PROMPT_WEIGHT = 0.15
READ_LR, WRITE_LR, EMBED_LR, NORM_LR = 0.02, 0.005, 5e-3, 3e-3
NUM_WAITING = 512  # documents among which the packer chooses


@dataclass(frozen=True, slots=True)
class Phase:
    """A stretch of the training: its tokens, the shape of its batches, the factor on the learning rates at its two
    ends (a straight line between them), and the families' shares of its tokens."""

    num_tokens: int
    rows: int
    length: int
    rate: tuple[float, float]
    shares: dict[str, float]


_MAIN = {family.name: family.share for family in FAMILIES}
# Finding a word again is what most other families are built on.
_LOOK_UP = _MAIN | {
    "tables": 12.0, "copying": 4.0, "reading": 5.0, "reading, invented names": 2.0, "true, false, unknown": 2.0,
}  # fmt: skip
# True, false or unknown has to be concentrated to be learnt at all.
_BLOCK = {family.name: family.block_share for family in FAMILIES}

PHASES = (
    Phase(180_000, 8, 256, (0.0, 1.0), _LOOK_UP),
    Phase(780_000, 8, 256, (1.0, 1.0), _LOOK_UP),
    Phase(1_440_000, 8, 256, (1.0, 1.0), _MAIN),
    Phase(1_800_000, 8, 256, (1.0, 0.8125), _MAIN),
    Phase(1_800_000, 8, 256, (0.8125, 0.625), _BLOCK),
    Phase(5_160_000, 12, 256, (0.625, 0.0875), _MAIN),
    Phase(840_000, 3, MAX_LEN, (0.0875, 0.0), _MAIN | {LONG.name: LONG.share}),
)


@dataclass(frozen=True, slots=True)
class Row:
    """Token ids of one document, and the weight of each as a target."""

    ids: list[int]
    weights: list[float]


def encode(tok: Tokenizer, document: Document) -> Row:
    """Part by part, because a program meets the model at just these borders. Ends with one separator."""
    ids: list[int] = []
    weights: list[float] = []
    for part in document.parts:
        part_ids = tok.encode(part.text, add_special_tokens=False).ids
        ids += part_ids
        weights += [1.0 if part.is_answer else PROMPT_WEIGHT] * len(part_ids)
    [end] = tok.encode(END).ids
    if ids[-1] != end:
        ids.append(end)
        weights.append(PROMPT_WEIGHT)
    return Row(ids, weights)


class Packer:
    """Fills rows with whole documents, drawn by their families' token shares; best fit from a waiting list."""

    def __init__(self, tok: Tokenizer, rng: Random) -> None:
        self.tok = tok
        self.rng = rng
        self.waiting: list[Row] = []
        self.mean_len: dict[str, float] = {}
        probe = Random("mean length")
        for family in (*FAMILIES, LONG):
            rows = [encode(tok, draw(family, probe, held_out=False)) for _ in range(100)]
            self.mean_len[family.name] = sum(len(row.ids) for row in rows) / len(rows)

    def _documents(self, shares: dict[str, float]) -> Callable[[], Row]:
        families: list[Family] = [family for family in (*FAMILIES, LONG) if family.name in shares]
        odds = [shares[family.name] / self.mean_len[family.name] for family in families]

        def one() -> Row:
            [family] = self.rng.choices(families, odds)
            return encode(self.tok, draw(family, self.rng, held_out=False))

        return one

    def batches(self, phase: Phase) -> Iterator[tuple[Tensor, Tensor]]:
        """ids and weights, [rows, length + 1]."""
        one = self._documents(phase.shares)
        while True:
            rows = [self._row(one, phase.length + 1) for _ in range(phase.rows)]
            yield (torch.tensor([row.ids for row in rows]), torch.tensor([row.weights for row in rows]))

    def _row(self, one: Callable[[], Row], size: int) -> Row:
        ids: list[int] = []
        weights: list[float] = []
        while (room := size - len(ids)) > 0:
            while len(self.waiting) < NUM_WAITING:
                self.waiting.append(one())
            index = 0
            if len(self.waiting[0].ids) > room:
                if not ids:  # longer than a whole row: cut
                    row = self.waiting.pop(0)
                    return Row(row.ids[:size], row.weights[:size])
                fitting = [(len(row.ids), i) for i, row in enumerate(self.waiting) if len(row.ids) <= room]
                if not fitting:
                    ids += [0] * room
                    weights += [0.0] * room
                    break
                index = max(fitting)[1]
            row = self.waiting.pop(index)
            ids += row.ids
            weights += row.weights
        return Row(ids, weights)


class Training:
    """All that changes while training; can be saved and gone on with."""

    def __init__(self, tok: Tokenizer, seed: int, phases: Sequence[Phase] = PHASES) -> None:
        self.tok = tok
        self.phases = phases
        self.rng = Random(f"train {seed}")
        self.packer = Packer(tok, self.rng)
        self.network = Network(Shape(vocab_size=tok.get_vocab_size()), seed, tokenizer.twins(tok))
        named = list(self.network.named_parameters())
        write = [p for name, p in named if name.endswith(("out", "down"))]
        read = [p for name, p in named if name.endswith(("qkv", "gate_up"))]
        norms = [p for _name, p in named if p.ndim == 1]
        self.optimizers = (
            Muon([{"params": read, "peak": READ_LR}, {"params": write, "peak": WRITE_LR}]),
            torch.optim.AdamW(
                [{"params": [self.network.embed], "peak": EMBED_LR}, {"params": norms, "peak": NORM_LR}],
                betas=(0.9, 0.98),
                weight_decay=0.0,
            ),
        )
        self.num_done = 0
        self.seconds = 0.0

    def state(self) -> dict[str, Any]:
        return {
            "network": self.network.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "rng": self.rng.getstate(),
            "waiting": [(row.ids, row.weights) for row in self.packer.waiting],
            "num_done": self.num_done,
            "seconds": self.seconds,
        }

    def load(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.rng.setstate(state["rng"])
        self.packer.waiting = [Row(ids, weights) for ids, weights in state["waiting"]]
        self.num_done = state["num_done"]
        self.seconds = state["seconds"]

    def run(self, save: Callable[[Training], None], save_every_s: float, log_every: int = 100) -> None:
        params = list(self.network.parameters())
        loss_fn = torch.compile(self.network.loss, dynamic=False)
        started = last_saved = time.monotonic() - self.seconds
        last_saved = time.monotonic()
        end = 0
        for phase in self.phases:
            end += phase.num_tokens
            if self.num_done >= end:
                continue
            cos, sin = rope_table(self.network.shape, phase.length)
            total = torch.zeros(())
            for step, (ids, weights) in enumerate(self.packer.batches(phase), 1):
                first, last = phase.rate
                factor = last + (first - last) * max(0, end - self.num_done) / phase.num_tokens
                for optimizer in self.optimizers:
                    for group in optimizer.param_groups:
                        group["lr"] = group["peak"] * factor
                loss = loss_fn(ids[:, :-1], ids[:, 1:], weights[:, 1:], cos, sin)
                loss.backward()  # type: ignore[no-untyped-call]
                torch.nn.utils.clip_grad_norm_(params, 1.0)
                for optimizer in self.optimizers:
                    optimizer.step()
                self.network.zero_grad(set_to_none=True)
                self.num_done += phase.rows * phase.length
                self.seconds = time.monotonic() - started
                total += loss.detach()
                if step % log_every == 0:
                    rate = self.num_done / self.seconds
                    print(
                        f"{self.num_done / 1e6:.2f} M tokens, {self.seconds / 60:.1f} min, {rate:.0f} tokens/s, "
                        f"loss {float(total) / log_every:.4f}",
                        flush=True,
                    )
                    total.zero_()
                if time.monotonic() - last_saved > save_every_s:
                    save(self)
                    last_saved = time.monotonic()
                if self.num_done >= end:
                    break
        save(self)


def export(training: Training, folder: Path) -> None:
    """Everything that transformers and our engine need."""
    tokenizer.save(training.tok, folder, MAX_LEN)
    ids = training.tok.encode(IM_END + END).ids
    config = training.network.shape.hf_config(end_ids=ids, pad_id=ids[1], max_len=MAX_LEN)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    generation = {"do_sample": False, "eos_token_id": ids, "pad_token_id": ids[1], "bos_token_id": None}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    weights = folder / "model.safetensors"
    save_file(training.network.hf_state(), weights, metadata={"format": "pt"})
    weights.chmod(0o644)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=model_path())
    parser.add_argument("--checkpoint", type=Path, default=Path("dslc-tiny.ckpt"))
    parser.add_argument("--save-every-s", type=float, default=180.0)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    tok_file = args.out / "tokenizer.json"
    tok = Tokenizer.from_file(str(tok_file)) if tok_file.exists() else tokenizer.train(args.seed)
    training = Training(tok, args.seed)
    if args.checkpoint.exists():
        training.load(torch.load(args.checkpoint, weights_only=True))

    def save(now: Training) -> None:
        part = args.checkpoint.with_suffix(".part")
        torch.save(now.state(), part)
        part.replace(args.checkpoint)

    training.run(save, args.save_every_s)
    export(training, args.out)
    print(markdown(evaluate(args.out, num_documents=64)))


if __name__ == "__main__":
    main()
