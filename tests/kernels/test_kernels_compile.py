"""Every Triton kernel compiles for the GPUs it is meant for, and fits their shared memory; it needs no GPU."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import dslc

pytest.importorskip("triton")
ROOT = Path(dslc.__file__).parent


@pytest.mark.slow
@pytest.mark.timeout(1800)  # a minute or two of an idle core, the first time
@pytest.mark.parametrize("capability", [80, 90])
def test_all_kernels_compile(capability):
    script = ROOT / "tests" / "support" / "compile_kernels.py"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, script, str(capability)], env=environment, capture_output=True, text=True, timeout=1700
    )
    assert done.returncode == 0, done.stderr
    compiled = {line.partition(":")[0] for line in done.stdout.splitlines()}
    source = "".join(module.read_text("utf-8") for module in (ROOT / "kernels" / "triton").glob("*.py"))
    launched = set(re.findall(r"^ *(_\w+)\[", source, re.MULTILINE))
    assert launched == compiled, "tests/support/compile_kernels.py must launch every kernel"
