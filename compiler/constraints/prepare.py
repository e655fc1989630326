"""What every constraint over a vocabulary shares: made when the vocabulary is loaded, or by the first mask."""

from __future__ import annotations

from ...core.constraint import Vocabulary
from .char_algebra import ALL, forget_combined
from .native_walk import usual_closures
from .schema.string_masks import CUT_TOKENS, cut_tokens
from .schema.values import standard_leaves
from .spelling import forget_shared_dfas, shared_byte_dfa
from .token_trie import TokenTrie, trie_of
from .wide import pin_rows


def prepare_vocabulary(vocabulary: Vocabulary) -> TokenTrie:
    """The vocabulary's tree, with the rows of free text in JSON strings. About 0.3 s for 131,072 tokens, once."""
    trie = trie_of(vocabulary)
    if not trie.is_prepared:
        pin_rows(shared_byte_dfa(ALL, "json", keep=True), trie)
        pin_rows(shared_byte_dfa(ALL, "json-plain", keep=True), trie)
        standard_leaves()
        if trie.native is not None:
            for closure in usual_closures():
                trie.pin(closure.key, trie.native.closure_row(closure))
        trie.pin(CUT_TOKENS, cut_tokens(trie))
        trie.is_prepared = True
    return trie


def forget_shared(vocabulary: Vocabulary) -> None:
    """Drop what constraints have left for later ones: shared automata, combined languages, rows of `vocabulary`.

    What `prepare_vocabulary` made stays.
    """
    forget_shared_dfas()
    forget_combined()
    prepare_vocabulary(vocabulary).forget()
