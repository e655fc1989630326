"""JSON Schema to automata: `document` reads it, `keywords` gives each schema a `Shape`, `machine` reads text by it."""
