"""Configuration: from file, environment and flags to one checked model."""
