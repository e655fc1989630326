"""Random programs as a person would write them: Python source with gens, selects, forks, loops, branches, tools, nested
functions. `make_source(seed)` is the text of a module with one program `program(s, q, items)`."""

from __future__ import annotations

import random

HEAD = '''"""A random program."""
import dslc

CALLS = []


def tool(x):
    CALLS.append(str(x))
    return f"<{str(x)[:3]}>"


def picky(x):
    CALLS.append("picky")
    if "a" in str(x):
        raise ValueError(f"no {str(x)[:2]}")
    return str(x).upper()[:3]


class Box:
    """An object of the user's whose operations are seen."""

    def __init__(self, items):
        self.items = items

    def __len__(self):
        CALLS.append("len")
        return len(self.items)

    def __str__(self):
        CALLS.append("str")
        return "-".join(self.items)

    def __iter__(self):
        CALLS.append("iter")
        return iter(self.items)

    def __contains__(self, item):
        CALLS.append(f"has {item}")
        return item in self.items

    def __getitem__(self, key):
        CALLS.append("item")
        return self.items[key]

    @property
    def last(self):
        return self.items[-1]


BOX = Box(["a", "b"])


def pure(x, y="-"):
    return f"{y}{x}{y}"


def part(s, x):
    s += f" ({x}" + dslc.gen("inner", max_tokens=2) + ")"
    if s["inner"] == "b":
        s += "!"
        return "early"
    return s["inner"]

'''


class _Writer:
    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.lines: list[str] = []
        self.num_names = 0
        self.budget = self.random.randint(4, 14)

    def name(self, stem: str) -> str:
        self.num_names += 1
        return f"{stem}{self.num_names}"

    def line(self, depth: int, text: str) -> None:
        self.lines.append("    " * depth + text)

    def value(self, names: list[str], variables: list[str], state: str) -> str:
        """An expression for a short text."""
        options = ['"lit"', "q", *names, *(f'{state}["{var}"]' for var in variables)]
        found = self.random.choice(options)
        how = self.random.randint(0, 7)
        if how == 0:
            return f"pure({found})"
        if how == 1:
            return f"str({found}).strip()"
        if how == 2:
            return f'f"{{{found}}}|"' if '"' not in found else found
        return found

    def gen(self, var: str | None) -> str:
        options = [f"max_tokens={self.random.randint(1, 3)}"]
        if self.random.random() < 0.3:
            options.append(f"temperature={self.random.choice([0, 0.8])}")
        if self.random.random() < 0.2:
            options.append('stop="c"')
        elif self.random.random() < 0.2:
            options.append('regex="[ab]{1,2}"')
        name = [repr(var)] if var is not None else []
        return f"dslc.gen({', '.join([*name, *options])})"

    def block(self, depth: int, names: list[str], variables: list[str], state: str, loops: int, size: int) -> None:
        """Statements; `names` and `variables` grow by what is surely set."""
        kinds = [
            "text", "text", "gen", "gen", "gen", "select", "if", "if", "for", "while", "fork", "tool", "try", "part",
            "append", "set", "scope", "unnamed", "comprehension", "object", "end",
        ]  # fmt: skip
        start = len(self.lines)
        for _ in range(size):
            if self.budget <= 0:
                break
            self.budget -= 1
            kind = self.random.choice(kinds)
            if kind in ("for", "while", "fork") and depth > 3:
                kind = "gen"
            if getattr(self, "_" + kind)(depth, names, variables, state, loops):
                break
        if len(self.lines) == start:
            self.line(depth, f'{state} += "."')

    def _text(self, depth: int, names: list[str], variables: list[str], state: str, loops: int) -> None:
        self.line(
            depth,
            f'{state} += f"\\n{self.random.choice(["Q", "So", "Then"])}: " + {self.value(names, variables, state)}',
        )

    def _gen(self, depth: int, names: list[str], variables: list[str], state: str, loops: int) -> None:
        var = self.random.choice(["x", "y", "z"])
        self.line(depth, f"{state} += {self.gen(var)}")
        if var not in variables:
            variables.append(var)

    def _unnamed(self, depth: int, names: list[str], variables: list[str], state: str, loops: int) -> None:
        self.line(depth, f'{state} += "then " + {self.gen(None)}')

    def _select(self, depth: int, names: list[str], variables: list[str], state: str, loops: int) -> None:
        self.line(depth, f'{state} += " is " + dslc.select("pick", ["a", "b", "ab"])')
        if "pick" not in variables:
            variables.append("pick")

    def _if(self, depth: int, names: list[str], variables: list[str], state: str, loops: int) -> None:
        left = self.value(names, variables, state)
        test = self.random.choice(
            [f'{left} == "a"', f'"b" in {left}', f"len({left}) > 1", f'not {left}.startswith("a")']
        )
        self.line(depth, f"if {test}:")
        self.block(depth + 1, list(names), list(variables), state, loops, 3)
        if self.random.random() < 0.6:
            self.line(depth, "else:")
            self.block(depth + 1, list(names), list(variables), state, loops, 2)

    def _for(self, depth: int, names: list[str], variables: list[str], state: str, loops: int) -> None:
        item = self.name("item")
        over = self.random.choice(["items", "range(2)", '["u", "v"]', "enumerate(items)", 'q.split(" ")'])
        self.line(depth, f"for {item} in {over}:")
        self.block(depth + 1, [*names, f"str({item})"], list(variables), state, loops + 1, 3)

    def _object(self, depth: int, names: list[str], variables: list[str], state: str, loops: int) -> None:
        value = self.value(names, variables, state)
        how = self.random.randint(0, 5)
        if how == 0:
            self.line(depth, f'{state} += f"{{BOX}} of {{len(BOX)}}, {{BOX.last}}"')
        elif how == 1:
            self.line(depth, f"{state} += BOX[0] + str(BOX)")
        elif how == 2:
            self.line(depth, f'if {value} in BOX or BOX.last == "a":')
            self.block(depth + 1, list(names), list(variables), state, loops, 2)
        elif how == 3:
            item = self.name("item")
            self.line(depth, f"for {item} in BOX:")
            self.block(depth + 1, [*names, item], list(variables), state, loops + 1, 2)
        elif how == 4:
            self.line(depth, f'{state} += ",".join(map(tool, BOX)) + {value}')
        else:
            self.line(depth, f'{state} += "yes" if BOX else "no"')

    def _while(self, depth: int, names: list[str], variables: list[str], state: str, loops: int) -> None:
        count = self.name("count")
        self.line(depth, f"{count} = 0")
        if self.random.random() < 0.5:
            self.line(depth, "while True:")
            self.line(depth + 1, f"{count} += 1")
            self.line(depth + 1, f"{state} += {self.gen('w')}")
            self.line(depth + 1, f'if {state}["w"] == "a" or {count} > 2:')
            self.line(depth + 2, "break")
        else:
            self.line(depth, f'while {count} < 2 and {self.value(names, variables, state)} != "a":')
            self.line(depth + 1, f"{count} += 1")
        self.block(depth + 1, [*names, f"str({count})"], list(variables), state, loops + 1, 2)
        names.append(f"str({count})")

    def _fork(self, depth: int, names: list[str], variables: list[str], state: str, loops: int) -> None:
        forks, branch = self.name("forks"), self.name("branch")
        sizes = [str(self.random.randint(2, 3)), "1 + len(items) % 3"]  # the second: known to the run only
        if variables:
            sizes.append(f'1 + len(str({state}["{self.random.choice(variables)}"])) % 3')
        self.line(depth, f"{forks} = {state}.fork({self.random.choice(sizes)})")
        own = ["m"]
        if self.random.random() < 0.5:
            self.line(depth, f"for i, {branch} in enumerate({forks}):")
            self.line(depth + 1, f'{branch} += f"{{i}}:" + {self.gen("m")}')
            if self.random.random() < 0.4:
                self.block(depth + 1, list(names), [*variables, *own], branch, 0, 2)
        else:
            self.line(depth, f'{forks} += lambda i: f"<{{i}}>" + {self.gen("m")}')
        how = self.random.randint(0, 6)
        if how == 0:
            self.line(depth, f"for {branch} in {forks}:")
            self.line(depth + 1, f"{branch} += f\"({{{branch}['m']}})\" + {self.gen('again')}")
        elif how == 1:
            self.line(depth, f"for {branch}, word in zip({forks}, [q, 'v', 'w']):")
            self.line(depth + 1, f"{branch} += word + {self.gen('m')}")
        elif how == 2:
            self.line(depth, f'{forks}[0] += "first " + {self.gen("m")}')
            self.line(depth, f'{state}["kept"] = {forks}[0]["m"]')
        if self.random.random() < 0.7:
            self.line(depth, f"{forks}.join()")
            self.line(depth, f'{state} += "+".join({state}["m"])')
        else:
            self.line(depth, f'{forks}.join("concate_and_append")')

    def _tool(self, depth: int, names: list[str], variables: list[str], state: str, loops: int) -> None:
        found = self.name("found")
        self.line(depth, f"{found} = tool({self.value(names, variables, state)})")
        self.line(depth, f'{state} += f" {{{found}}}"')
        names.append(found)

    def _try(self, depth: int, names: list[str], variables: list[str], state: str, loops: int) -> None:
        found = self.name("found")
        self.line(depth, "try:")
        self.line(depth + 1, f"{found} = picky({self.value(names, variables, state)})")
        self.line(depth, "except ValueError as error:")
        self.line(depth + 1, f'{found} = f"[{{error}}]"')
        self.line(depth, f"{state} += {found}")
        names.append(found)

    def _part(self, depth: int, names: list[str], variables: list[str], state: str, loops: int) -> None:
        found = self.name("found")
        self.line(depth, f"{found} = part({state}, {self.value(names, variables, state)})")
        names.append(found)
        if "inner" not in variables:
            variables.append("inner")

    def _append(self, depth: int, names: list[str], variables: list[str], state: str, loops: int) -> None:
        self.line(depth, f"seen.append({self.value(names, variables, state)})")

    def _set(self, depth: int, names: list[str], variables: list[str], state: str, loops: int) -> None:
        self.line(depth, f'{state}["kept"] = {self.value(names, variables, state)}')
        if "kept" not in variables:
            variables.append("kept")

    def _scope(self, depth: int, names: list[str], variables: list[str], state: str, loops: int) -> None:
        self.line(depth, f'with {state}.var_scope("scope"):')
        self.line(depth + 1, f'{state} += "in" + {self.gen("v")}')
        variables.extend(var for var in ("scope", "v") if var not in variables)

    def _comprehension(self, depth: int, names: list[str], variables: list[str], state: str, loops: int) -> None:
        found = self.name("found")
        over = self.value(names, variables, state)
        self.line(depth, f'{found} = "".join(c for c in str({over}) if c in "ab")')
        names.append(found)

    def _end(self, depth: int, names: list[str], variables: list[str], state: str, loops: int) -> bool:
        """Leave the block early, inside of a branch or loop."""
        if loops and depth > 2:
            self.line(depth, self.random.choice(["break", "continue"]))
            return True
        if depth > 2 and state == "s" and self.random.random() < 0.5:
            self.line(depth, f"return {self.value(names, variables, state)}")
            return True
        return False


def make_source(seed: int) -> str:
    """The text of a module with a random `program(s, q, items)`."""
    writer = _Writer(seed)
    names: list[str] = []
    variables: list[str] = []
    writer.line(1, "seen = []")
    writer.line(1, 's += f"{q}:" + dslc.gen("x", max_tokens=2)')
    variables.append("x")
    writer.block(1, names, variables, "s", 0, 12)
    writer.line(1, f"return [seen, {', '.join(names[-2:]) or 'q'}]")
    return HEAD + "\n@dslc.function\ndef program(s, q, items):\n" + "\n".join(writer.lines) + "\n"
