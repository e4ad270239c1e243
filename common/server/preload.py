"""What a server does before gRPC and structlog are loaded: its `__main__` imports this before any other module of ours.

- gRPC's own log stays off unless GRPC_VERBOSITY says otherwise: it writes a line that is not JSON about every failed
  handshake, so anyone who can connect could fill a disk.
- gRPC has no option for a lowest TLS version. With no usable cipher suite for TLS 1.2, a handshake below TLS 1.3 fails
  before the peer has sent anything: the one suite named here needs a pre-shared key, and TLS 1.3 has suites of its own.
- structlog does not load rich, which it needs only for a renderer that we do not use: this saves 3 MB and 30 ms at
  every start.
"""

import os
import sys

GRPC_ENVIRONMENT = {"GRPC_SSL_CIPHER_SUITES": "ECDHE-PSK-AES128-CBC-SHA"}

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # read once, when gRPC is loaded
os.environ.update(GRPC_ENVIRONMENT)  # not a default: nobody may allow TLS 1.2 again

if "structlog" not in sys.modules and "rich" not in sys.modules:
    sys.modules["rich"] = None  # type: ignore[assignment] # so that its import fails, as if rich were not installed
    try:
        import structlog  # noqa: F401
    finally:
        del sys.modules["rich"]
