"""From logits to tokens: penalties, filters, counter-based draws, log-probs."""
