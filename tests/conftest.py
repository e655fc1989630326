"""Puts tests/ on the import path, so that tests of every room can say `from support.tiny_models import ...`.

Triton kernels run under Triton's interpreter, on the CPU, unless the run asks for the tests of a GPU (`-m gpu`). It has
to be said before triton is first imported.
"""

import os
import re
import sys
from pathlib import Path

from dslc.core.cache_folder import cache_folder

sys.path.insert(0, str(Path(__file__).parent))

# Tests with a cache folder of their own, and processes that they start, need not build the C++ library anew.
if os.environ.get("DSLC_NATIVE_DIR") is None and (folder := cache_folder()) is not None:
    os.environ["DSLC_NATIVE_DIR"] = str(folder)


def pytest_configure(config):
    if not re.search(r"(?<!not )\bgpu\b", config.option.markexpr):
        os.environ["TRITON_INTERPRET"] = "1"
