"""Whether this nexus has its root key: the states, and how it gets into and out of ready."""
