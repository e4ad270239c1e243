"""What pilot asks and shows."""
