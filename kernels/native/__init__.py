"""Arithmetic for the CPU in C++: `llama.cc` is a Llama-like model's forward, `library` its door to Python."""
