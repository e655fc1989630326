"""The Plan: facts before the run, forms that give it back; the Schedule: what a batch shares, counted by brute force."""
# ruff: noqa: E501 (tables with one case a line)

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.programs import ALL_OPS, programs
from support.scripted import ScriptedTokenizer
from support.toy_tokenizer import ToyTemplate, ToyTokenizer

from dslc.compiler.constraints import cache_counters, compile_constraint
from dslc.compiler.ir import Gen, Ref, Select, Text, walk
from dslc.compiler.lower import lower
from dslc.compiler.parser import parse_program
from dslc.compiler.passes.base import CompileOptions
from dslc.compiler.passes.static_prefixes import maximal
from dslc.compiler.pipeline import PASS_NAMES, PASSES, compile_program, plan_stats
from dslc.compiler.plan import Plan
from dslc.compiler.printer import print_program
from dslc.compiler.prompts import prompts
from dslc.compiler.schedule import Instance, Workload, first_prompt, schedule, schedule_prompts
from dslc.core.errors import ConfigError, IRSyntaxError, ProgramError, VerifyError

TRIAGE = parse_program("""
program triage(ticket) {
  %0 = arg "ticket"
  role "system" { text "You sort support tickets." }
  role "user" {
    %9 = concat "Here it is: " %0
    text %9
  }
  role "assistant" { %1 = select "label" ["bug", "billing", "big"] }
  %2 = eq %1 "bug"
  switch %2 {
    case true {
      role "assistant" {
        text "Code: "
        %3 = gen "code" sampling=(max_new_tokens=16)
        text "Done."
        %4 = gen "rest"
      }
    }
  }
}""")


def compiled(program, **options):
    return compile_program(program, ToyTokenizer(), ToyTemplate(), CompileOptions(**options))


def test_the_plan_knows_prefixes_followers_and_choices():
    tokenizer = ToyTokenizer()
    plan = compile_program(TRIAGE, tokenizer, ToyTemplate())
    system = "<|system|>\nYou sort support tickets.<|end|>\n<|user|>\nHere it is:"
    assert tokenizer.decode(plan.static_prefix, skip_special_tokens=False) == system
    select, code, rest = plan.selects[0], plan.gen(Ref(3)), plan.gen(Ref(4))
    assert select.tail == ""  # template text is settled, though a choice might begin with it
    assert select.sequences == tuple(tuple(tokenizer.encode(c)) for c in ("bug", "billing", "big"))
    assert select.num_nodes == len({ids[:n] for ids in select.sequences for n in range(1, len(ids) + 1)})
    assert (select.follows, select.literal) == ("literal", "<|end|>\n")
    assert (code.follows, code.literal, code.expected_len) == ("literal", "Done.", 16)
    assert (rest.follows, rest.literal, rest.expected_len) == ("literal", "<|end|>\n", 0)
    assert [type(list(walk(plan.program.body))[facts.op]) for facts in plan.facts] == [Select, Gen, Gen]
    assert plan.passes == PASS_NAMES
    assert plan_stats(plan)["static_prefix_tokens"] == len(plan.static_prefix)


@pytest.mark.parametrize(
    ("after", "follows"),
    [
        ('text "x"\n%2 = gen', ("literal", "x")),
        ("%2 = gen", ("gen", "")),
        ('set "a" 1\n%2 = select "b" ["c"]', ("select", "")),
        ("text %1", ("value", "")),
        ('role "user" { text "x" }', ("turn", "")),
        ('%2 = scope "v" { text "x" }', ("literal", "x")),
        ("fork 1", ("fork", "")),
        ('media image "cat"', ("media", "")),
        ('switch "a" {\n case "a" { text "x" }\n}', ("branch", "")),
        ('opaque "loop"', ("break", "")),
        ("return 1", ("end", "")),
        ("", ("end", "")),
    ],
)
def test_what_follows_a_gen(after, follows):
    program = parse_program(f"program p() {{\n%1 = gen\n{after}\n}}")
    facts = lower(program).gen(Ref(1))
    assert (facts.follows, facts.literal) == follows


def test_what_follows_a_gen_in_a_branch_is_its_join():
    plan = lower(parse_program('program p() {\nfork 1 2\n[1] %1 = gen "a"\ntext "x"\njoin gather_variable 1 2\n}'))
    assert plan.gen(Ref(1)).follows == "join"


def test_branches_of_a_fork_share_the_parents_prefix():
    program = parse_program("""program p() {
      special "<|user|>one two"
      fork 1 2
      [1] special "<|a|>x"
      [2] special "<|b|>y"
      [1] %1 = gen
      [2] %2 = gen
    }""")
    tokenizer = ToyTokenizer()
    plan = compile_program(program, tokenizer)
    texts = [tokenizer.decode(prefix, skip_special_tokens=False) for prefix in plan.prefixes]
    assert sorted(texts) == ["<|user|>one two<|a|>", "<|user|>one two<|b|>"]
    assert plan.gen(Ref(1)).prefix != plan.gen(Ref(2)).prefix


def test_equal_constraints_are_one():
    from dslc.compiler.passes.base import Context
    from dslc.compiler.passes.constraint_cache import CONSTRAINT_CACHE

    gens = "\n".join(f'%{i} = gen constraint=regex("{source}")' for i, source in enumerate(["a+", "b+", "a+"]))
    plan = CONSTRAINT_CACHE.run(lower(parse_program(f"program p() {{\n{gens}\n%9 = gen\n}}")), Context())
    keys = [facts.constraint for facts in plan.gens]
    assert keys[0] == keys[2] != keys[1] and keys[3] is None
    assert [plan.constraint(key).source for key in keys[:2]] == ["a+", "b+"] and len(plan.constraints) == 2


def test_constraints_are_compiled_with_the_plan_if_asked_and_only_once():
    source = 'program p() {\n%1 = gen constraint=regex("warm-[0-9]{2}")\n%2 = gen constraint=regex("warm-[0-9]{2}")\n}'
    tokenizer, warm = ScriptedTokenizer(), CompileOptions(warm_constraints=True)
    before = cache_counters()
    compile_program(parse_program(source), tokenizer)
    assert cache_counters().compiled == before.compiled
    plan = compile_program(parse_program(source), tokenizer, options=warm)
    assert cache_counters().compiled == before.compiled + 1
    compile_program(parse_program(source), tokenizer, options=warm)
    # What the engine asks for is what was compiled.
    compile_constraint(plan.constraints[0], tokenizer.vocabulary, encode=tokenizer.encode)
    assert cache_counters().compiled == before.compiled + 1


def test_without_a_tokenizer_text_stays_text():
    plan = compile_program(TRIAGE)
    assert plan.tokenizer_hash is None and plan.prefixes == () and not plan.selects[0].sequences
    assert any(isinstance(op, Text) for op in walk(plan.program.body))


@pytest.mark.parametrize("name", PASS_NAMES)
def test_every_pass_can_be_left_out(name):
    plan = compiled(TRIAGE, disabled=(name,))
    assert plan.passes == tuple(other for other in PASS_NAMES if other != name)
    assert next(item for item in PASSES if item.name == name).promise.endswith(".")
    assert {facts.out for facts in plan.facts} == {facts.out for facts in compiled(TRIAGE).facts}


def test_an_unknown_pass_name_is_refused():
    with pytest.raises(ConfigError, match=r"there is no pass 'fold'; did you mean 'fold-text'\?"):
        compiled(TRIAGE, disabled=("fold",))


def test_print_after_all_shows_every_pass():
    seen = {}
    plan = compile_program(TRIAGE, ToyTokenizer(), ToyTemplate(), print_after_all=seen.__setitem__)
    assert tuple(seen) == PASS_NAMES
    assert seen["verify"] == print_program(TRIAGE)
    assert seen[PASS_NAMES[-1]] == str(plan)


def test_a_broken_program_is_not_compiled():
    with pytest.raises(VerifyError):
        compiled(parse_program("program p() {\ntext %1\n}"))


def test_a_plan_of_another_tokenizer_is_refused():
    plan = compiled(TRIAGE)
    plan.check_tokenizer("toy")
    compile_program(TRIAGE).check_tokenizer("other")
    with pytest.raises(ProgramError, match="holds ids of the tokenizer toy, but that of the backend is other"):
        plan.check_tokenizer("other")


@settings(max_examples=100, deadline=None)
@given(programs(ALL_OPS, constraints=False))
def test_plans_save_and_load(program):
    plan = compiled(program)
    loaded = Plan.from_json(plan.to_json())
    assert loaded == plan
    assert str(loaded) == str(plan)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(version=0), "written in version 0 of 'dslc.plan'"),
        (lambda d: d.update(format="dslc.program"), "not a 'dslc.plan'"),
        (lambda d: d["program"].update(version=99), "program: written in version 99"),
        (lambda d: d["gens"][0].update(prefix=7), "%3 speaks of prefix 7"),
        (lambda d: d["gens"][0].update(op=700), "%3 speaks of op 700"),
        (lambda d: d["gens"][0].update(follows="x"), r"gens\[0\]\.follows: must be one of"),
        (lambda d: d["selects"][0].update(sequences=[["a"]]), r"selects\[0\]\.sequences\[0\]\[0\]: must be an integer"),
    ],
)
def test_a_plan_of_another_shape_is_refused(change, message):
    data = json.loads(compiled(TRIAGE).to_json())
    change(data)
    with pytest.raises(IRSyntaxError, match=message):
        Plan.from_json(json.dumps(data))


# prompts


@pytest.mark.parametrize(
    ("body", "prompt"),
    [
        ('text "one"', "<|bos|>one"),
        ("", "<|bos|>"),
        ('special "<|user|>one"', "<|user|>one"),
        ('special "<|bos|>one"', "<|bos|>one"),
        ('role "user" { text "one" }', "<|user|>\none<|end|>\n"),
        ('role "user" prefix="" suffix="" { text "one" }', "one"),
    ],
)
def test_a_prompt_opens_with_a_bos_unless_template_text_does(body, prompt):
    tokenizer = ToyTokenizer(adds_bos=True)
    program = parse_program(f"program p() {{\n{body}\n%1 = gen\n}}")
    for disabled in ((), ("tokenize-constants",)):
        plan = compile_program(program, tokenizer, ToyTemplate("nobody"), CompileOptions(disabled))
        ids = first_prompt(Instance(plan, {}), tokenizer)
        assert tokenizer.decode(ids, skip_special_tokens=False) == prompt


def test_prompts_of_an_instance_follow_its_arguments():
    program = parse_program("""program p(kind, topic) {
      %0 = arg "kind"
      %1 = arg "topic"
      %2 = eq %0 "long"
      switch %2 {
        case true { text "Write much" }
        case false { text "Be brief" }
      }
      set "t" %1
      %3 = get "t"
      %4 = concat " about " %3 "."
      text %4
      %5 = gen "x"
      text "Again"
      %6 = gen "y"
    }""")
    tokenizer = ToyTokenizer()
    plan = compile_program(program, tokenizer)
    found = list(prompts(plan.program, tokenizer, {"kind": "long", "topic": "cats"}))
    assert [prompt.is_whole for prompt in found] == [True, False]
    ids = first_prompt(Instance(plan, {"kind": "long", "topic": "cats"}), tokenizer)
    assert ids == tuple(tokenizer.encode("Write much about cats."))
    # Nothing is common to both branches, so nothing is static.
    assert plan.static_prefix == ()
    half = next(iter(prompts(plan.program, tokenizer, {"kind": "long"})))
    assert (tokenizer.decode(half.ids), half.pending, half.is_whole) == ("Write much about", None, False)


STRAIGHT = frozenset(
    {"text", "special", "gen", "select", "set", "expr", "scope", "fork", "join", "copy", "switch", "role"}
)


@settings(max_examples=200, deadline=None)
@given(programs(STRAIGHT, constraints=False), st.data())
def test_what_is_static_is_so_for_all_arguments(program, data):
    """Static ids begin every instance's prompt, known as far as the instance's arguments tell."""
    tokenizer = ToyTokenizer()
    plan = compile_program(program, tokenizer, ToyTemplate("tool"))
    arguments = {param.name: data.draw(st.sampled_from(["", "a", "two words", "\n"])) for param in plan.program.params}
    known = {prompt.out: prompt for prompt in prompts(plan.program, tokenizer, arguments)}
    for facts in plan.facts:
        if facts.out in known and facts.prefix >= 0:
            static = plan.prefixes[facts.prefix][: facts.num_static_tokens]
            assert known[facts.out].ids[: len(static)] == static
    for facts in plan.selects:
        if facts.sequences and facts.out in known:
            pending, fixed = known[facts.out].pending, known[facts.out].fixed
            assert pending is not None and pending[max(tokenizer.safe_cut(pending), fixed) :] == facts.tail


@settings(max_examples=150, deadline=None)
@given(programs(frozenset({"text", "special", "set", "expr", "scope", "gen"}), constraints=False), st.data())
def test_lowered_or_not_an_instance_has_the_same_first_prompt(program, data):
    tokenizer = ToyTokenizer()
    arguments = {param.name: data.draw(st.sampled_from(["", "a", "two words", "\n"])) for param in program.params}
    raw = first_prompt(Instance(lower(program), arguments), tokenizer)
    assert first_prompt(Instance(compile_program(program, tokenizer), arguments), tokenizer) == raw


# schedule

IDS = st.lists(st.lists(st.integers(0, 2), max_size=6).map(tuple), max_size=12)


@settings(max_examples=300, deadline=None)
@given(IDS)
def test_shared_tokens_are_those_of_brute_force(known):
    found = schedule_prompts(known)
    prefixes = {ids[:n] for ids in known for n in range(1, len(ids) + 1)}
    assert found.num_distinct_tokens == len(prefixes)
    assert found.num_shared_tokens == sum(map(len, known)) - len(prefixes)
    assert sorted(found.order) == list(range(len(known)))
    # Depth first: whoever shares a prefix stands together.
    for prefix in prefixes:
        places = [place for place, i in enumerate(found.order) if known[i][: len(prefix)] == prefix]
        assert places == list(range(places[0], places[0] + len(places)))
    # The prefixes worth holding are the maximal ones of two or more instances.
    shared = [prefix for prefix in prefixes if sum(ids[: len(prefix)] == prefix for ids in known) > 1]
    assert sorted(found.prefixes) == list(maximal(shared))


def test_equal_prompts_keep_their_order():
    assert schedule_prompts([(1, 2), (3,), (1, 2), (3,), ()]).order == (4, 0, 2, 1, 3)


def test_a_batch_shares_its_system_turn():
    tokenizer = ToyTokenizer()
    plan = compile_program(TRIAGE, tokenizer, ToyTemplate())
    batch = Workload(tuple(Instance(plan, {"ticket": text}) for text in ("It is late", "No money", "It is lost")))
    found = schedule(batch, tokenizer)
    assert found.order == (0, 2, 1)
    texts = [tokenizer.decode(first_prompt(instance, tokenizer), False) for instance in batch.instances]
    assert (
        texts[1]
        == "<|system|>\nYou sort support tickets.<|end|>\n<|user|>\nHere it is: No money<|end|>\n<|assistant|>\n"
    )
    assert "3 instances; " in str(found) and "+17 tokens: 2 instances" not in str(found)
    assert tokenizer.decode(found.prefixes[0], False).endswith("Here it is: It is")


def test_programs_with_a_common_beginning_share_it_too():
    tokenizer = ToyTokenizer()
    one = compile_program(parse_program('program a() {\n text "The same beginning, one"\n %1 = gen\n}'), tokenizer)
    two = compile_program(parse_program('program b() {\n text "The same beginning, two"\n %1 = gen\n}'), tokenizer)
    found = schedule(Workload((Instance(one, {}), Instance(two, {}))), tokenizer)
    assert found.num_shared_tokens == len(tokenizer.encode("The same beginning,"))


def test_a_long_chain_of_branchings_is_no_recursion():
    known = [tuple(range(n)) for n in range(1, 3000)]
    assert schedule_prompts(known).num_distinct_tokens == 2999
