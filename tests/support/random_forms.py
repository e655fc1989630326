"""More of what people write, for `random_sources`: values in many forms, try and finally, comprehensions, copies, inner
functions, match, walrus, chat turns, mutation of plain data, process-wide state. `make_source(seed)` as there."""

# ruff: noqa: E501

from __future__ import annotations

from support import random_sources

HEAD = (
    random_sources.HEAD
    + '''
STATE = {"n": 0}


def count(x):
    """Changes what the process holds."""
    STATE["n"] += 1
    CALLS.append(f"count {STATE['n']}")
    return f"{x}{STATE['n']}"


def several(*parts, sep="/", **more):
    CALLS.append("several")
    return sep.join([*(str(p) for p in parts), *more])


class Note:
    """Plain data of the user's."""

    def __init__(self, text):
        self.text = text
        self.marks = []

    def mark(self, what):
        CALLS.append(f"mark {what}")
        self.marks.append(str(what))
        return self

    @classmethod
    def of(cls, text):
        return cls(f"note {text}")


def deeper(s, depth):
    """Calls itself, with a bound."""
    s += f"[{depth}" + dslc.gen("deep", max_tokens=1) + "]"
    if depth >= 2 or s["deep"] == "a":
        return s["deep"] * (depth + 1)
    return deeper(s, depth + 1)

'''
)

VALUES = [
    "{v}.upper()", '{v}.replace("a", "e")', "{v}[:1]", "{v}[-2:]", '({v} or "none")', '("%s;" % {v})', "({v} * 2)",
    '"{{}}!".format({v})', "repr({v})", "str(len({v}))", '"".join(sorted({v}))', '"".join(reversed({v}))',
    '({v} if {v} else "empty")', '{v}.split("a")[0]', '{{"a": "one", "b": "two"}}.get({v}, "other")',
    "(lambda w: w + q)({v})", 'str({v}.count("a"))', '", ".join([{v}, q])', '"-".join(c for c in {v})',
    'str(any(c == "a" for c in {v}))', "str([c for c in {v}][:2])", "max({v}, q)", "str({v} < q)", "several({v}, *items)",
    "several(*{v}[:2], sep='~')", "count({v})", "Note.of({v}).text", "Note({v}).mark('m').text",
    'str({{c: len(q) for c in {v}}})', '{v}.strip().title()', 'str({v}.find("b"))', '{v}.zfill(4)', 'str({v} in items)',
    'str(isinstance({v}, str))', 'str(bool({v}) and q)', 'str(not {v})', 'str(type({v}).__name__)', '{v}.partition("b")[2]',
    '" ".join(f"{{n}}{{c}}" for n, c in enumerate({v}))', 'str(sum(1 for c in {v} if c != "a"))', 'str(dict(k={v}))',
    'str({v} == q != "b")', 'str(list(zip({v}, q)))', 'str({v}.encode())', 'str(tuple({v}))', 'str(set({v}) & {{"a"}})',
    'str(sorted([{v}, q], key=len))', 'str(list(map(str.upper, [{v}])))', 'str(ord(({v} + "a")[0]))', 'dict([("k", {v})])["k"]',
]  # fmt: skip


class Writer(random_sources._Writer):
    """Also the forms of this file."""

    more = (
        "finally_", "reraise", "else_", "copy", "inner", "match", "walrus", "role", "mutate", "deep", "assert_", "for_else",
        "while_text", "nested_scope", "star", "int_", "aug", "tools_list", "unpack", "gens", "text_read", "nested_fork",
        "unordered", "delete", "note", "dict_loop", "flag",
    )  # fmt: skip

    def value(self, names, variables, state):
        found = super().value(names, variables, state)
        if self.random.random() < 0.35:
            return self.random.choice(VALUES).format(v=found)
        return found

    def block(self, depth, names, variables, state, loops, size):
        start = len(self.lines)
        for _ in range(size):
            if self.budget <= 0:
                break
            if self.random.random() < 0.5:
                super().block(depth, names, variables, state, loops, 1)
                if self.lines[-1].strip().startswith(("return", "break", "continue")) and self.depth_of(-1) == depth:
                    break
                continue
            self.budget -= 1
            kind = self.random.choice(self.more)
            if depth > 4 and kind not in ("star", "int_", "aug", "mutate", "walrus", "gens"):
                kind = "aug"
            getattr(self, "_" + kind)(depth, names, variables, state, loops)
        if len(self.lines) == start:
            self.line(depth, f'{state} += "."')

    def depth_of(self, number):
        line = self.lines[number]
        return (len(line) - len(line.lstrip())) // 4

    def _finally_(self, depth, names, variables, state, loops):
        self.line(depth, "try:")
        self.block(depth + 1, list(names), list(variables), state, loops, 2)
        self.line(depth, "finally:")
        self.line(depth + 1, f'{state} += "fin " + {self.value(names, variables, state)}')

    def _reraise(self, depth, names, variables, state, loops):
        self.line(depth, "try:")
        self.line(depth + 1, "try:")
        self.line(depth + 2, f"{state} += picky({self.value(names, variables, state)})")
        self.line(depth + 1, "except ValueError:")
        self.line(depth + 2, f'{state} += "again"')
        self.line(depth + 2, self.random.choice(["raise", 'raise KeyError("k")', 'raise KeyError("k") from None']))
        self.line(depth, "except Exception as error:")
        self.line(depth + 1, f'{state} += f"<{{type(error).__name__}} {{error}}>"')

    def _else_(self, depth, names, variables, state, loops):
        found = self.name("found")
        self.line(depth, "try:")
        self.line(depth + 1, f"{found} = picky({self.value(names, variables, state)})")
        self.line(depth, "except (KeyError, ValueError):")
        self.line(depth + 1, f'{found} = "bad"')
        self.line(depth, "else:")
        self.line(depth + 1, f"{state} += {found}")
        names.append(found)

    def _copy(self, depth, names, variables, state, loops):
        other, found = self.name("other"), self.name("found")
        self.line(depth, f"with {state}.copy() as {other}:")
        self.line(depth + 1, f'{other} += "copy " + {self.gen("c")}')
        self.line(depth + 1, f'{found} = {other}["c"]')
        self.block(depth + 1, [*names, found], [*variables, "c"], other, 0, 2)
        names.append(found)

    def _inner(self, depth, names, variables, state, loops):
        inner, found = self.name("inner"), self.name("found")
        self.line(depth, f"def {inner}(t, word, times=1):")
        self.line(depth + 1, f"t += word * times + {self.gen('n')}")
        self.line(depth + 1, 'if t["n"] == "a":')
        self.line(depth + 2, 'return "A"')
        self.block(depth + 1, ["word", *names], [*variables, "n"], "t", 0, 2)
        self.line(depth + 1, 'return t["n"] + word')
        self.line(
            depth,
            f"{found} = {inner}({state}, {self.value(names, variables, state)}, times={self.random.randint(1, 2)})",
        )
        names.append(found)

    def _match(self, depth, names, variables, state, loops):
        self.line(depth, f"match {self.value(names, variables, state)}:")
        for case in self.random.sample(['"a"', '"b" | "ab"', 'str(w) if "a" in w', '""'], 2):
            self.line(depth + 1, f"case {case}:")
            self.block(depth + 2, list(names), list(variables), state, loops, 2)
        self.line(depth + 1, "case rest:")
        self.line(depth + 2, f'{state} += f"rest {{rest}}"')

    def _walrus(self, depth, names, variables, state, loops):
        found = self.name("found")
        self.line(depth, f'if ({found} := {self.value(names, variables, state)}) and "a" in str({found}):')
        self.line(depth + 1, f"{state} += str({found}) + {self.gen('x')}")
        names.append(f"str({found})")

    def _role(self, depth, names, variables, state, loops):
        if state != "s" or depth > 1:
            self._aug(depth, names, variables, state, loops)
            return
        if self.random.random() < 0.5:
            self.line(depth, f"{state} += dslc.user({self.value(names, variables, state)})")
            self.line(depth, f"{state} += dslc.assistant({self.gen('said')})")
        else:
            self.line(depth, f"with {state}.user():")
            self.line(depth + 1, f'{state} += "I say " + {self.value(names, variables, state)}')
            self.line(depth, f"with {state}.assistant():")
            self.line(depth + 1, f'{state} += "well " + {self.gen("said")}')
        if "said" not in variables:
            variables.append("said")

    def _mutate(self, depth, names, variables, state, loops):
        value = self.value(names, variables, state)
        self.line(depth, self.random.choice([
            f"notes.setdefault(str({value}), []).append(q)", f"notes[str({value})] = len(notes)", f"seen.extend([{value}, q])",
            f"seen.insert(0, {value})", f"seen += [{value}]", "seen.reverse()", "seen.sort(key=str)", f"bag.add(str({value}))",
            f'notes.update({{"k": {value}}})', "seen[:] = seen[-3:]", f"last = seen[-1] if seen else {value}",
        ]))  # fmt: skip
        if self.random.random() < 0.5:
            self.line(
                depth,
                f"{state} += "
                + self.random.choice(
                    [
                        'f"{len(seen)}"',
                        "str(seen[-1:])",
                        "str(sorted(notes))",
                        'f"{notes}"',
                        "str(sorted(bag))",
                        'str("k" in notes)',
                    ]
                ),
            )

    def _deep(self, depth, names, variables, state, loops):
        found = self.name("found")
        self.line(depth, f"{found} = deeper({state}, {self.random.randint(0, 2)})")
        names.append(found)
        if "deep" not in variables:
            variables.append("deep")

    def _assert_(self, depth, names, variables, state, loops):
        self.line(depth, "try:")
        self.line(depth + 1, f'assert len({self.value(names, variables, state)}) < 3, "too long"')
        self.line(depth, "except AssertionError as error:")
        self.line(depth + 1, f"{state} += str(error)")

    def _for_else(self, depth, names, variables, state, loops):
        item = self.name("item")
        self.line(depth, f"for {item} in {self.random.choice(['items', 'list(q)', 'sorted(items)', 'items[::-1]'])}:")
        self.line(depth + 1, f"{state} += {item} + {self.gen('x')}")
        self.line(depth + 1, f'if {state}["x"] == {self.value([item], variables, state)}:')
        self.line(depth + 2, "break")
        self.line(depth, "else:")
        self.line(depth + 1, f'{state} += "none"')

    def _while_text(self, depth, names, variables, state, loops):
        count = self.name("count")
        self.line(depth, f"{state} += {self.gen('w')}")
        self.line(depth, f"{count} = []")
        self.line(depth, f'while {state}["w"] != "a" and len({count}) < 3:')
        self.line(depth + 1, f'{count}.append({state}["w"])')
        self.block(depth + 1, list(names), [*variables, "w"], state, loops + 1, 2)
        if not self.lines[-1].strip().startswith(("return", "break", "continue")) or self.depth_of(-1) != depth + 1:
            self.line(depth + 1, f'{state} += "more" + {self.gen("w")}')
        if self.random.random() < 0.4:
            self.line(depth, "else:")
            self.line(depth + 1, f'{state} += "done"')
        names.append(f'"/".join({count})')

    def _nested_scope(self, depth, names, variables, state, loops):
        self.line(depth, f'with {state}.var_scope("outer"):')
        self.block(depth + 1, list(names), list(variables), state, 0, 2)
        if not self.lines[-1].strip().startswith("return") or self.depth_of(-1) != depth + 1:
            self.line(depth + 1, f'{state} += "o" + {self.gen("v")}')
            variables.extend(var for var in ("outer", "v") if var not in variables)

    def _star(self, depth, names, variables, state, loops):
        found = self.name("found")
        self.line(depth, f"parts = [{self.value(names, variables, state)}, q]")
        self.line(depth, f'options = {{"sep": "+", "more": {self.value(names, variables, state)}}}')
        self.line(depth, f"{found} = several(*parts, *items, **options)")
        names.append(found)

    def _int_(self, depth, names, variables, state, loops):
        found = self.name("found")
        self.line(depth, "try:")
        self.line(
            depth + 1, f'{found} = int({self.value(names, variables, state)}.replace("a", "1").replace("b", "2"))'
        )
        self.line(depth, "except ValueError:")
        self.line(depth + 1, f"{found} = -1")
        self.line(depth, f'{state} += f"{{{found}:>3}}|{{{found} + 1:03d}}|{{{found} / 2:.1f}}"')
        names.append(f"str({found})")

    def _aug(self, depth, names, variables, state, loops):
        self.line(depth, f"total += len({self.value(names, variables, state)})")
        self.line(
            depth,
            f"{state} += "
            + self.random.choice(
                ['f"{total:04}"', "str(total % 3)", '"odd" if total % 2 else "even"', 'f"{total!r:>5}"', 'f"{total=}"']
            ),
        )

    def _tools_list(self, depth, names, variables, state, loops):
        found = self.name("found")
        over = self.value(names, variables, state)
        self.line(depth, f"{found} = [tool(c) for c in {over}[:3]]")
        if self.random.random() < 0.5:
            item = self.name("item")
            self.line(depth, f"for {item} in {found}:")
            self.block(depth + 1, [*names, item], list(variables), state, loops + 1, 2)
        names.append(f'"".join({found})')

    def _unpack(self, depth, names, variables, state, loops):
        first, rest = self.name("first"), self.name("rest")
        self.line(depth, f"{first}, *{rest} = [{self.value(names, variables, state)}, q, *items]")
        self.line(depth, f"{first}, swapped = q, {first}")
        names.extend([first, f'"".join({rest})', "swapped"])

    def _gens(self, depth, names, variables, state, loops):
        self.line(depth, f'{state} += dslc.gen("many", n=2, max_tokens=2, temperature=0.7)')
        self.line(depth, f'{state} += "|".join({state}["many"])')
        if '"many"[0]' not in variables:
            names.append(f'{state}["many"][1]')

    def _text_read(self, depth, names, variables, state, loops):
        names.append(f"{state}.text()[-3:]")

    def _nested_fork(self, depth, names, variables, state, loops):
        forks, branch, inner, leaf = (self.name(stem) for stem in ("forks", "branch", "forks", "leaf"))
        self.line(depth, f"{forks} = {state}.fork(2)")
        self.line(depth, f"for {branch} in {forks}:")
        self.line(depth + 1, f'{branch} += "b" + {self.gen("m")}')
        self.line(depth + 1, f"{inner} = {branch}.fork(2)")
        self.line(depth + 1, f"for {leaf} in {inner}:")
        self.line(depth + 2, f"{leaf} += {branch}['m'] + {self.gen('l')}")
        self.line(depth + 1, self.random.choice([f"{inner}.join()", f'{inner}.join("concate_and_append")']))
        self.line(depth, self.random.choice([f"{forks}.join()", f'{forks}.join("concate_and_append")']))

    def _unordered(self, depth, names, variables, state, loops):
        self.line(depth, f'{state} += dslc.unordered([{self.value(names, variables, state)}, q, "c"], separator=";")')

    def _delete(self, depth, names, variables, state, loops):
        self.line(depth, f"spare = [{self.value(names, variables, state)}, q]")
        self.line(depth, "del spare[0]")
        self.line(depth, f"{state} += spare.pop()")

    def _note(self, depth, names, variables, state, loops):
        note = self.name("note")
        self.line(depth, f"{note} = Note({self.value(names, variables, state)})")
        self.line(depth, f"{note}.mark({self.value(names, variables, state)})")
        self.line(depth, f'{note}.text += "!"')
        self.line(depth, f"{state} += {note}.text + str({note}.marks)")

    def _dict_loop(self, depth, names, variables, state, loops):
        self.line(depth, f'table = {{"k": {self.value(names, variables, state)}, "l": q}}')
        self.line(depth, "for key, held in table.items():")
        self.line(depth + 1, f"{state} += key + held + {self.gen('x')}")
        self.line(depth + 1, f'table[key] = {state}["x"]')
        names.append('table["k"]')

    def _flag(self, depth, names, variables, state, loops):
        self.line(depth, f'flag = {self.value(names, variables, state)} == "a" or total > 2')
        self.line(depth, "while not flag:")
        self.line(depth + 1, f"{state} += {self.gen('x')}")
        self.line(depth + 1, "total += 1")
        self.line(depth + 1, f'flag = {state}["x"] in ("a", "b") or total > 2')


def make_source(seed: int) -> str:
    """The text of a module with a random `program(s, q, items)`."""
    writer = Writer(seed)
    names: list[str] = []
    variables: list[str] = []
    writer.line(1, "seen, notes, bag, total = [], {}, set(), 0")
    writer.line(1, 's += f"{q}:" + dslc.gen("x", max_tokens=2)')
    variables.append("x")
    writer.block(1, names, variables, "s", 0, 10)
    if not writer.lines[-1].startswith("    return"):
        writer.line(1, f"return [seen, notes, sorted(bag), total, {', '.join(names[-2:]) or 'q'}]")
    return HEAD + "\n@dslc.function\ndef program(s, q, items):\n" + "\n".join(writer.lines) + "\n"
