"""What is encoded, signed or kept: one form for each, read the same way everywhere."""
