"""The server: keeps the root key in memory, serves secrets, and gets its key back from keepers."""

__version__ = "0.1.0"
