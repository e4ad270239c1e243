"""Primitives for keys: protected memory, derivation, Shamir, sealing, and recovery words."""
