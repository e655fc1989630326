"""The benchmarks of one batch and of throughput run on a tiny model, and account for what they did."""

import re
import runpy
import sys
from pathlib import Path

import pytest
import torch
from support.tiny_models import tiny_checkpoint

import dslc

BENCHMARKS = Path(dslc.__file__).parent / "benchmarks"
torch.set_num_threads(1)


@pytest.fixture
def run(monkeypatch, capsys):
    monkeypatch.syspath_prepend(BENCHMARKS)
    kept = set(sys.modules)

    def run_script(name, *options):
        monkeypatch.setattr(sys, "argv", [name, "--model", str(tiny_checkpoint("llama")), "--device", "cpu", *options])
        runpy.run_path(str(BENCHMARKS / name), run_name="__main__")
        return capsys.readouterr().out.splitlines()

    yield run_script
    for name in set(sys.modules) - kept:
        if str(getattr(sys.modules[name], "__file__", None) or "").startswith(str(BENCHMARKS)):
            del sys.modules[name]


def test_one_batch_reports_prefill_and_decode_apart(run):
    lines = run("one_batch.py", "--batch", "1", "3", "--input-len", "9", "--output-len", "4", "--rounds", "1")
    assert "torch.float32, cpu, 1 threads" in lines[0]
    head, rows = lines[1], [[float(n.replace(",", "")) for n in line.split()] for line in lines[2:]]
    assert re.findall(r"prefill ms|decode ms|host ms|total ms", head) == [
        "prefill ms",
        "decode ms",
        "host ms",
        "total ms",
    ]
    assert [row[:3] for row in rows] == [[1, 9, 4], [3, 9, 4]]
    for batch, input_len, output_len, prefill, prefill_rate, decode, decode_rate, host, total, rate in rows:
        assert 0 < prefill < total and 0 < host < decode < total
        assert prefill_rate == pytest.approx(1e3 * batch * input_len / prefill, rel=0.1)
        assert decode_rate == pytest.approx(1e3 * batch / decode, rel=0.1)
        assert rate == pytest.approx(1e3 * batch * (input_len + output_len) / total, rel=0.1)


def test_throughput_counts_every_token(run):
    options = {"num-prompts": 5, "input-len": 12, "output-len": 6, "range-ratio": 1, "shared-prefix": 8}
    given = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
    lines = run("offline_throughput.py", *given, "--max-running-requests", "2")
    told = {line[:20].strip(): line[21:] for line in lines[1:]}
    assert told["requests"] == "5" and told["output tokens"] == str(5 * 6)
    prompt, cached = (int(n) for n in re.findall(r"\d+", told["input tokens"]))
    assert prompt == 5 * 20 and 4 * 8 <= cached < prompt
