"""Backends elsewhere: an SGLang-compatible server, and the APIs of model providers. See docs/remote.md."""
