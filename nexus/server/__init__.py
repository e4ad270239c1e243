"""The process and its wire: builds every part, listens, and turns messages into calls."""
