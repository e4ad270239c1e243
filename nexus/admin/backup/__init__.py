"""Backups: made by a process of its own, kept in a directory, opened again by the nexus that made them."""
