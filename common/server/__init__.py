"""A process that serves: its edge, its health, its identity, its logs, and its end."""
