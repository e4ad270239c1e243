"""An example of a workload: asks for its secret again and again, and says how that went; never what it got.

Address and identity come from SHARDHOLD_ADDRESS and SPIFFE_ENDPOINT_SOCKET, and there is nothing else to hand out.
"""

import signal
import sys
import threading

from shardhold import Client, Error

PATH = "team/app/db"
PAUSE_S = 5.0


def main() -> None:
    """Ask until SIGTERM."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda number, frame: stop.set())
    said = ""
    with Client(timeout=30) as client:
        while not stop.is_set():
            line = ask(client)
            if line != said:  # the log is for what changes
                sys.stdout.write(f"{line}\n")
                sys.stdout.flush()
            said = line
            stop.wait(PAUSE_S)


def ask(client: Client) -> str:
    """Return a line that says what came of it."""
    try:
        secret = client.get(PATH)
    except Error as exc:
        return f"no {PATH}: {exc}"
    return f"got {PATH} version {secret.version}: {', '.join(sorted(secret.fields))}"


if __name__ == "__main__":
    main()
