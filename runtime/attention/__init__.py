"""Attention backends behind one interface; the torch one is the reference."""
