"""Accuracy on documents that were never trained on: `python -m dslc.runtime.builtin.evaluate`.

A document counts as right only if every answer in it equals, token for token, what greedy decoding gives. (Under
greedy decoding that is the same as: at each position of the answer the most likely token is the right one.)
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import torch
from tokenizers import Tokenizer

from . import model_path
from .corpus import FAMILIES, LONG, Document, draw

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class Score:
    """Of one family: documents asked, documents wholly right, answers asked, answers right; some wrong answers."""

    family: str
    num_documents: int
    num_right: int
    num_answers: int
    num_answers_right: int
    wrong: tuple[tuple[str, str, str], ...]  # prompt, expected, given


def held_out(family_name: str, count: int, seed: int = 1) -> list[Document]:
    """Different held-out documents of a family (fewer than `count` if the family has no more)."""
    family = next(family for family in (*FAMILIES, LONG) if family.name == family_name)
    rng = Random(f"evaluate {seed} {family_name}")
    found: dict[str, Document] = {}
    for _ in range(20 * count):
        document = draw(family, rng, held_out=True)
        found.setdefault(document.text, document)
        if len(found) == count:
            break
    return list(found.values())


@torch.inference_mode()
def evaluate(
    folder: Path, num_documents: int = 64, batch: int = 8, families: Sequence[str] | None = None
) -> list[Score]:
    """Score the weights in `folder`, with transformers, in float32."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tok = Tokenizer.from_file(str(folder / "tokenizer.json"))
    scores = []
    for name in families or [family.name for family in (*FAMILIES, LONG)]:
        documents = held_out(name, num_documents // 4 if name == LONG.name else num_documents)
        num_right = num_answers = num_answers_right = 0
        wrong: list[tuple[str, str, str]] = []
        for start in range(0, len(documents), batch):
            chunk = documents[start : start + batch]
            encoded = [[tok.encode(part.text, add_special_tokens=False).ids for part in doc.parts] for doc in chunk]
            lengths = [sum(map(len, parts)) for parts in encoded]
            rows = torch.zeros(len(chunk), max(lengths), dtype=torch.long)
            for row, parts in zip(rows, encoded, strict=True):
                flat = [token for part in parts for token in part]
                row[: len(flat)] = torch.tensor(flat)
            guesses = model(rows).logits.argmax(-1)
            for row, guess, parts, document in zip(rows, guesses, encoded, chunk, strict=True):
                position, all_right = 0, True
                for ids, part in zip(parts, document.parts, strict=True):
                    if part.is_answer:
                        given = guess[position - 1 : position - 1 + len(ids)]
                        right = bool((given == row[position : position + len(ids)]).all())
                        num_answers += 1
                        num_answers_right += right
                        all_right &= right
                        if not right:
                            prompt = tok.decode(row[:position].tolist(), skip_special_tokens=False)
                            wrong.append((prompt, part.text, tok.decode(given.tolist(), skip_special_tokens=False)))
                    position += len(ids)
                num_right += all_right
        scores.append(Score(name, len(documents), num_right, num_answers, num_answers_right, tuple(wrong)))
    return scores


def markdown(scores: Sequence[Score]) -> str:
    lines = ["| family | documents | wholly right | single answers right |", "|---|---|---|---|"]
    for score in scores:
        documents = 100 * score.num_right / score.num_documents
        answers = 100 * score.num_answers_right / score.num_answers
        lines.append(f"| {score.family} | {score.num_documents} | {documents:.0f} % | {answers:.0f} % |")
    mean = sum(score.num_right / score.num_documents for score in scores) / len(scores)
    lines.append(f"| **mean of families** | {sum(score.num_documents for score in scores)} | {100 * mean:.0f} % | |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=model_path())
    parser.add_argument("--documents", type=int, default=128, help="held-out documents per family")
    parser.add_argument("--families", nargs="*", help="names of families; all if absent")
    parser.add_argument("--show-wrong", type=int, default=0, help="wrong answers to show per family")
    args = parser.parse_args(argv)
    torch.set_num_threads(2)
    scores = evaluate(args.model, args.documents, families=args.families)
    print(markdown(scores))
    for score in scores:
        for prompt, expected, given in score.wrong[: args.show_wrong]:
            print(f"\n--- {score.family}\n{prompt[-600:]}\n    expected {expected!r}\n    given    {given!r}")


if __name__ == "__main__":
    main()
