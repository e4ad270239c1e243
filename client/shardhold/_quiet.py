"""gRPC, imported so that its C library does not write to stderr about every handshake that fails.

It reads GRPC_VERBOSITY once, when it is loaded. What the application has set stays, and so does the log of a gRPC that
the application has loaded before; the variable is gone again afterwards, so no child process inherits it.
"""

import os

_VARIABLE = "GRPC_VERBOSITY"

if _VARIABLE in os.environ:
    import grpc
else:
    os.environ[_VARIABLE] = "NONE"
    try:
        import grpc
    finally:
        del os.environ[_VARIABLE]

__all__ = ["grpc"]
