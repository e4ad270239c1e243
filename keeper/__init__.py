"""The server that holds one shard of the root key in memory and nowhere else."""

__version__ = "0.1.0"
