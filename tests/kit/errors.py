"""What a cluster raises that does not do what a test wants."""


class ClusterError(AssertionError):
    """The cluster did not do what was wanted, or not in time."""
