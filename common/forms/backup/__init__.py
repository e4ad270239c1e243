"""The content of a backup: rows of a store, of whatever engine, as a stream that proves itself whole."""
