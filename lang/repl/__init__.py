"""The session behind `dslc repl`, without its terminal. See docs/repl.md."""
