"""The lines of the audit and how they are verified, with or without a nexus."""
