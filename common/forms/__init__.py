"""What is encoded, signed or stored: one form for each, read the same way everywhere."""
