"""Every Triton kernel compiles for the GPUs it is meant for, and fits their shared memory; it needs no GPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import dslc
from dslc.kernels import registry

pytest.importorskip("triton")
ROOT = Path(dslc.__file__).parent


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
def test_all_kernels_compile(capability):
    script = ROOT / "tests" / "support" / "compile_kernels.py"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, script, str(capability)], env=environment, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr
    compiled = {line.partition(":")[0] for line in done.stdout.splitlines()}
    jitted = set()
    for module in (ROOT / "kernels" / "triton").glob("*.py"):
        source = module.read_text("utf-8")
        jitted |= {after.partition("(")[0].strip() for after in source.split("@triton.jit\ndef ")[1:]}
    launched = {name for name in jitted if name in done.stdout}
    assert compiled == launched and len(compiled) >= 6
    kernels = {name for name in jitted if name.startswith("_") and name not in ("_activated", "_normed")}
    assert kernels == compiled, "a kernel that no wrapper launches here, or that support/compile_kernels.py leaves out"
    assert registry.operations()
