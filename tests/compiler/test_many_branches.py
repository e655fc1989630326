"""Branches one after the other do not double the paths: what follows them is traced once."""

import importlib.util

from support.both_ways import both_ways

import dslc
from dslc.compiler.ir import walk


def load(path, body):
    path.write_text("import dslc\n\n@dslc.function\ndef program(s, q):\n    s += q\n    found = ''\n" + body)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.program


def test_forty_branches_that_set_nothing_stand_side_by_side(tmp_path):
    body = "".join(
        f"    s += '{i}:' + dslc.gen('x{i}', max_tokens=1)\n    if s['x{i}'] == 'a':\n        s += 'yes'\n"
        for i in range(40)
    )
    program = load(tmp_path / "forty_branches.py", body)
    both_ways(program, q="b")
    names = [op.name for op in walk(program.compile().body)]
    assert names.count("gen") == names.count("switch") == 40 and "loop" not in names


def test_what_branches_set_goes_on_behind_them(tmp_path):
    body = "".join(
        f"    s += '{i}:' + dslc.gen('x{i}', max_tokens=1)\n    if s['x{i}'] == 'a':\n        found += 'f{i}'\n"
        f"    elif q == 'b':\n        s += 'B'\n    else:\n        found = found or 'none'\n"
        for i in range(12)
    )
    program = load(tmp_path / "setting_branches.py", body + "    s += found\n    return found\n")
    for q in ("a", "b"):
        both_ways(program, q=q)
    assert [op.name for op in walk(program.compile().body)].count("gen") == 12


def test_a_short_loop_with_two_branches_in_each_round():
    @dslc.function
    def agent(s, q):
        s += q
        for _ in range(5):
            s += dslc.gen("thought", max_tokens=2)
            if "a" in s["thought"]:
                s += "yes"
            s += dslc.gen("act", max_tokens=2)
            if s["act"] == "b":
                s += "B"
            elif s["act"] == "c":
                break
            else:
                s += "C"

    both_ways(agent, q="b", whole=False)
    assert agent.compile().is_whole
