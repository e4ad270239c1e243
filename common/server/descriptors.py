"""File descriptors: enough of them for every connection that the ports of a server take."""

import resource

WANTED = 8192  # two ports with 2,048 connections each, and as many again for files, keepers and what is to come


def allow_descriptors(wanted: int = WANTED) -> int:
    """Raise the soft limit of open files to *wanted*, or as far as the hard limit lets it; return what it is then.

    Connections reach the soft limit of many systems, 1024, before they reach the limit of a port: no other port of the
    process would accept then, and no file open.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return soft
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return wanted
