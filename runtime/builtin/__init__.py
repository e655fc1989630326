"""The built-in model dslc-tiny."""
