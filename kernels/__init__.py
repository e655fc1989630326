"""One operation per file, as plain torch: the specification of what faster versions of it must compute.

`registry.choose` picks the version to run. `triton/` has versions for GPUs, `native/` a whole forward in C++ for CPUs.
"""

from . import (
    activation,
    argmax,
    cascade_attention,
    decode_attention,
    extend_attention,
    kv_cache,
    merge_states,
    rms_norm,
    rotary,
    sample,
    token_bitmask,
    tree_attention,
)

__all__ = [
    "activation",
    "argmax",
    "cascade_attention",
    "decode_attention",
    "extend_attention",
    "kv_cache",
    "merge_states",
    "rms_norm",
    "rotary",
    "sample",
    "token_bitmask",
    "tree_attention",
]
