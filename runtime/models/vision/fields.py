"""A part of config.json whose wrong and missing fields are named, with the file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ....core.errors import ModelLoadError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_SIZES = frozenset(
    """
    hidden_size intermediate_size num_hidden_layers num_attention_heads image_size patch_size num_channels in_channels
    in_chans embed_dim depth num_heads spatial_merge_size temporal_patch_size window_size out_hidden_size
    """.split()
)
_HEADS = (("hidden_size", "num_attention_heads"), ("embed_dim", "num_heads"))


class Fields(dict[str, Any]):
    """The fields of `vision_config`, say. Asked for one that is missing, it raises ModelLoadError naming it.

    So it does when it is made, of sizes that are no positive integers and of widths that heads cannot share.
    """

    def __init__(self, name: str, values: Mapping[str, Any], file: Path) -> None:
        super().__init__({field: value for field, value in values.items() if value is not None})
        self.name, self.file = name, file
        for field in _SIZES & self.keys():
            if type(self[field]) is not int or self[field] < 1:
                raise self.error(field, f"must be a positive integer, not {self[field]!r}")
        for width, heads in _HEADS:
            if width in self and heads in self and self[width] % self[heads]:
                raise self.error(width, f"is {self[width]}, which {self[heads]} heads ({heads}) cannot share")

    def error(self, field: str, message: str) -> ModelLoadError:
        """What is wrong with a field."""
        return ModelLoadError(f"field '{self.name}.{field}' {message}", path=str(self.file))

    def __missing__(self, field: str) -> Any:
        raise self.error(field, "is missing: take the model's own config.json")
