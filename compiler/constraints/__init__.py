"""Regexes and JSON Schemas to automata over bytes, and to masks over a vocabulary."""
