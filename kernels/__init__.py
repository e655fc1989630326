"""One operation per file: a plain torch twin and its faster versions, chosen by one registry."""
