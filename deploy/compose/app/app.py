"""An example workload: reads its secret every few seconds and prints how that went, never what it got.

Address and identity come from SHARDHOLD_ADDRESS and SPIFFE_ENDPOINT_SOCKET; it needs nothing else.
"""

import signal
import sys
import threading

from shardhold import Client, Error

PATH = "team/app/db"
PAUSE_S = 5.0


def main() -> None:
    """Read until SIGTERM."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda number, frame: stop.set())
    said = ""
    with Client(timeout=30) as client:
        while not stop.is_set():
            line = ask(client)
            if line != said:  # log only what changes
                sys.stdout.write(f"{line}\n")
                sys.stdout.flush()
            said = line
            stop.wait(PAUSE_S)


def ask(client: Client) -> str:
    """Read once, and return a line that says how that went."""
    try:
        secret = client.get(PATH)
    except Error as exc:
        return f"not read: {exc}"
    return f"got {PATH} version {secret.version}: {', '.join(sorted(secret.fields))}"


if __name__ == "__main__":
    main()
