"""An exception of the user's own at each statement of the classic programs.

It comes out of run() as it is, with the program's line, whether the program is compiled, interpreted, streamed or one
of a batch; nothing hangs, nothing is lost."""

import ast
import importlib.util
import itertools
import sys
import traceback
from pathlib import Path

import pytest
from support.scripted import ScriptedBackend

import dslc
from dslc.core.errors import place_of

EXAMPLES = Path(dslc.__file__).parent / "examples"
ANSWER = '{"name": "Paris", "country": "France", "size": "large"}'
CALL = '{"name": "calculate", "arguments": {"left": 2, "operator": "+", "right": 3}}'
MIA = '{"name": "Mia", "age": 12, "mood": "happy"}'

# file: program, arguments, what a scripted model says
PROGRAMS = {
    "few_shot_qa": ("few_shot_qa", {"question": "Why?"}, " Because.\n"),
    "multi_turn_chat": ("multi_turn_chat", {"name": "Emma"}, "Hello."),
    "json_by_schema": ("city_by_type", {"city": "Paris"}, ANSWER),
    "expert_answer": ("expert_answer", {"question": "Why?"}, "A physicist."),
    "tool_use": ("tool_use", {"question": "What is 1 + 2?"}, " 1 + 2\n"),
    "tool_call": ("tool_call", {"question": "What is 2 + 3?"}, CALL),
    "react": ("react", {"question": "Where?"}, " I search."),
    "tip_suggestion": ("tip_suggestion", {"topic": "sleep"}, " Sleep well."),
    "parallel_encoding": ("parallel_encoding", {"documents": ("a", "b"), "question": "c?"}, " b"),
    "tree_of_thought": ("tree_of_thought", {"question": "Why?"}, " Think.\n"),
    "skeleton_of_thought": ("skeleton_of_thought", {"question": "How?"}, " One.\n Two."),
    "llm_judge": ("llm_judge", {"text": "A text."}, "7"),
    "self_consistency": ("self_consistency", {"question": "5 + 3?"}, "8"),
    "character_extraction": ("extract_character", {"text": "Mia is 12."}, MIA),
}
NUMBERS = itertools.count()
HOOK = """

class Boom(Exception):
    pass


def boom(number):
    if number == FAIL_AT:
        raise Boom(number)
"""


class _Insert(ast.NodeTransformer):
    """Puts `boom(k)` before each statement of the program's body, nested ones included."""

    def __init__(self, name):
        self.name = name
        self.count = 0
        self.is_inside = False

    def visit_FunctionDef(self, node):
        if node.name == self.name:
            self.is_inside = True
            node.body = self.block(node.body)
            self.is_inside = False
        return node

    def block(self, body):
        found = []
        for statement in body:
            call = ast.parse(f"boom({self.count})").body[0]
            self.count += 1
            for field in ("body", "orelse", "finalbody"):
                if getattr(statement, field, None):
                    setattr(statement, field, self.block(getattr(statement, field)))
            for handler in getattr(statement, "handlers", []):
                handler.body = self.block(handler.body)
            found += [call, statement]
        return found


def load(name, function, folder):
    """The example with a call before each statement of its program; how many there are."""
    tree = ast.parse((EXAMPLES / f"{name}.py").read_text("utf-8"))
    insert = _Insert(function)
    tree = insert.visit(tree)
    head = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    tree.body = [node for node in tree.body if node not in head]
    path = folder / f"{name}.py"
    path.write_text(
        "\n".join(ast.unparse(node) for node in head) + HOOK + "\n\nFAIL_AT = -1\n\n" + ast.unparse(tree) + "\n"
    )
    spec = importlib.util.spec_from_file_location(f"failing_example_{next(NUMBERS)}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module, insert.count


def line_of(error, path):
    """The line of the program that an error came through."""
    steps = [step.lineno for step in traceback.extract_tb(error.__traceback__) if step.filename == str(path)]
    where = place_of(error)
    return where.line if where is not None else steps[-2]  # the last is in `boom` itself


@pytest.mark.parametrize("name", PROGRAMS)
def test_an_error_of_the_user_at_each_statement(name, tmp_path):
    function, arguments, answer = PROGRAMS[name]
    module, count = load(name, function, tmp_path)
    program = getattr(module, function)
    path = tmp_path / f"{name}.py"
    lines = path.read_text().splitlines()
    whole = program.run(**arguments, backend=ScriptedBackend(answer), seed=3).text()
    assert count >= 2
    num_raised = 0
    for number in range(count):
        module.FAIL_AT = number
        for compiled in (None, False):
            backend = ScriptedBackend(answer)
            try:
                state = program.run(**arguments, backend=backend, seed=3, compiled=compiled)
            except module.Boom as error:
                assert error.args == (number,)
                assert lines[line_of(error, path) - 1].strip() == f"boom({number})"
                num_raised += compiled is None
            else:
                assert state.text() == whole  # no path came there
            assert backend.num_in_flight == 0
        (kept,) = program.run_batch([arguments], backend=ScriptedBackend(answer), seed=3)
        streamed = program.run(**arguments, backend=ScriptedBackend(answer), seed=3, stream=True)
        if isinstance(kept.error(), module.Boom):
            with pytest.raises(module.Boom):
                list(streamed.text_iter())
        else:
            assert kept.error() is None and kept.text() == "".join(streamed.text_iter()) == whole
    assert num_raised >= 2
