"""What is kept on disk: one protocol, and a folder for each backend."""
