"""The admin CLI, and `pilot dev`: a whole cluster on one machine."""

__version__ = "0.1.0"
