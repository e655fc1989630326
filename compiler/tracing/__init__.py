"""From a Python function to a Program: the rewritten copy, its hooks, and the paths through it."""
