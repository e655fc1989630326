"""The helper other tests stand on: its checkpoints are distinct, reloadable and not degenerate."""

import torch
from support.tiny_models import VOCAB_SIZE, reference_greedy, reference_model, tiny_checkpoint, tiny_tokenizer

torch.set_num_threads(1)


def test_equal_arguments_give_the_same_folder():
    assert tiny_checkpoint("llama") == tiny_checkpoint("llama")
    assert tiny_checkpoint("llama") != tiny_checkpoint("llama", tie_word_embeddings=True)


def test_tokenizer_round_trips_and_keeps_specials():
    tokenizer = tiny_tokenizer()
    for text in ("Häuschen 日本語 🙂", '{"a": [1, 2]}', "  two  spaces\n\n"):
        assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert len(tokenizer) == VOCAB_SIZE
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert chat == "<|im_start|>user\nhi<|im_end|>\n"


def test_greedy_text_varies():
    path = tiny_checkpoint("llama")
    ids, margin = reference_greedy(path, tiny_tokenizer()("The quick brown fox").input_ids, 32)
    assert len(set(ids)) > 8 and margin > 1e-3
    assert reference_model(path).config.num_key_value_heads == 2
