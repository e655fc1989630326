"""docs/kernels.md: its blocks run and print what it says, and it names every operation."""

import re
from pathlib import Path

import dslc
from dslc.kernels.registry import operations

DOCUMENT = (Path(dslc.__file__).parent / "docs" / "kernels.md").read_text("utf-8")


def test_the_blocks_run(capsys):
    [code] = re.findall(r"```python\n(.*?)```", DOCUMENT, flags=re.S)
    [text] = re.findall(r"```text\n(.*?)```", DOCUMENT, flags=re.S)
    names = {}
    exec(code, names)
    assert capsys.readouterr().out.partition(" (")[0] == text.partition(" (")[0]
    assert names["out"].shape == (2, 4096)


def test_the_table_has_every_operation_and_its_file():
    rows = re.findall(r"^\| (`.*?`) \| `(\w+\.py)` \|", DOCUMENT, flags=re.M)
    named = {name: file for names, file in rows for name in re.findall(r"`(\w+)`", names)}
    assert set(named) == set(operations())
    for name, file in named.items():
        assert f'@operation("{name}"' in (Path(dslc.__file__).parent / "kernels" / file).read_text("utf-8").replace(
            "@operation(\n    ", "@operation("
        )
