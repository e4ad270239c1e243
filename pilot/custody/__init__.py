"""Shares on their way to custodians and back."""
