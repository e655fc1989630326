"""Puts tests/ on the import path, so that tests of every room can say `from support.tiny_models import ...`.

Triton kernels run under Triton's interpreter, on the CPU, unless the run asks for the tests of a GPU (`-m gpu`). It has
to be said before triton is first imported.
"""

import os
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))


def pytest_configure(config):
    if not re.search(r"(?<!not )\bgpu\b", config.option.markexpr):
        os.environ["TRITON_INTERPRET"] = "1"
