"""What a server does before gRPC and structlog are loaded: the first import of ours in its `__main__`.

- gRPC's own log stays off unless GRPC_VERBOSITY says otherwise: it writes a line, which is no JSON, about every
  handshake that fails, so that whoever can connect could fill a disk.
- structlog does not load rich, of which it would only use a renderer that we do not: 3 MB and 30 ms of every start.
"""

import os
import sys

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # read once, when gRPC is loaded

if "structlog" not in sys.modules and "rich" not in sys.modules:
    sys.modules["rich"] = None  # type: ignore[assignment] # so that its import fails, as where rich is not installed
    try:
        import structlog  # noqa: F401
    finally:
        del sys.modules["rich"]
