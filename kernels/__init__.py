"""One operation per file, as plain torch: the specification of what faster versions of it must compute.

`registry.choose` picks the version to run; the Triton ones stand in `triton/`.
"""

from . import (
    activation,
    cascade_attention,
    decode_attention,
    extend_attention,
    merge_states,
    rms_norm,
    token_bitmask,
    tree_attention,
)

__all__ = [
    "activation",
    "cascade_attention",
    "decode_attention",
    "extend_attention",
    "merge_states",
    "rms_norm",
    "token_bitmask",
    "tree_attention",
]
