"""One operation per file, as plain torch: the specification of what faster versions of it must compute.

`registry.choose` picks the version to run; the Triton ones stand in `triton/`.
"""

from . import activation, rms_norm, token_bitmask

__all__ = ["activation", "rms_norm", "token_bitmask"]
