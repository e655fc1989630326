"""Context-free grammars to automata over bytes.

The chain: `reader` (which of two written forms) - `lark_form` or `root_form` (text to rules) - `networks` (rules to
small automata over terminals and rules; what is regular becomes one terminal) - `machine` (the automaton that walks
them).
"""
