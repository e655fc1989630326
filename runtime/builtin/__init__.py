"""dslc-tiny: a small model that ships with the package, so that every program runs out of the box."""

from __future__ import annotations

from pathlib import Path


def model_path() -> Path:
    """The folder with config, weights and tokenizer, as transformers and our engine read it."""
    return Path(__file__).parent / "dslc_tiny"
