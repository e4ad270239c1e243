"""The one way in: who calls, whether it is allowed, and what it leaves in the audit."""
