"""A whole cluster on one machine, for developers and for the tests."""
