"""What every constraint over a vocabulary shares: made when the vocabulary is loaded, or by the first mask."""

from __future__ import annotations

from ...core.constraint import Vocabulary
from .char_algebra import ALL, forget_combined
from .char_dfa import from_regex
from .native_walk import USUAL, usual_closures
from .regex_syntax import parse_regex
from .schema.names import forget_names
from .schema.scalars import forget_patterns
from .schema.string_masks import CUT_TOKENS, cut_tokens
from .schema.values import standard_leaves
from .speller import forget_spellers, speller_of
from .spelling import forget_shared_dfas, shared_byte_dfa
from .token_trie import TokenTrie, trie_of
from .wide import pin_rows

_USUAL = ("[a-z]*", "[^a]*", ".*", r"\S*")  # what patterns tell apart beyond ASCII


def prepare_vocabulary(vocabulary: Vocabulary) -> TokenTrie:
    """The vocabulary's tree, with the rows of free text in JSON strings. About 0.3 s for 131,072 tokens, once."""
    trie = trie_of(vocabulary)
    if not trie.is_prepared:
        by_length = [pin_rows(shared_byte_dfa(ALL, spelling, keep=True), trie) for spelling in USUAL]
        standard_leaves()
        for pattern in _USUAL:
            chars = from_regex(parse_regex(pattern, "ecma"))
            speller_of(chars.bounds, chars.classes, "json")
            speller_of(chars.bounds, chars.classes, "json-plain")
        if trie.native is not None:
            closures = usual_closures()
            rows = [trie.native.closure_row(closure) for closure in closures]
            for closure, row in zip(closures, rows, strict=True):
                trie.pin(closure.key, row)
            trie.native.share(by_length, closures, rows)
        trie.pin(CUT_TOKENS, cut_tokens(trie))
        trie.is_prepared = True
    return trie


def forget_shared(vocabulary: Vocabulary) -> None:
    """Drop what constraints have left for later ones: patterns, automata, combined languages, rows of `vocabulary`.

    What `prepare_vocabulary` made stays.
    """
    forget_shared_dfas()
    forget_spellers()
    forget_combined()
    forget_patterns()
    forget_names()
    prepare_vocabulary(vocabulary).forget()
