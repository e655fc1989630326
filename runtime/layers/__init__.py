"""The pieces models are built from: linear, norm, rotary embedding, attention, logits."""
