"""dslc: write programs that talk to a language model as Python functions; compile them; run them fast."""

__version__ = "0.1.0"
