"""Write `watch.svg`, the picture of `pilot watch` in the README: `python docs/screenshot.py`.

A real cluster is started, used, and robbed of a keeper; the picture is what `pilot watch` shows then, with made-up
addresses. It takes half a minute. No test compares the picture, since times and rates differ.
"""

import io
import re
import tempfile
import threading
from datetime import datetime
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.terminal_theme import TerminalTheme

from pilot.commands.watch_screen import render_screen
from pilot.commands.watching import Sight, Watcher
from pilot.dev.cluster import DevCluster
from pilot.dev.directory import DevDirectory, Plan
from pilot.dev.identities import SUPERUSER_PATH, Identity
from shardhold import Client, WorkloadAPI
from shardhold.channel import PinnedChannel
from shardhold.v1.cluster_pb2 import GetStatusRequest
from shardhold.v1.cluster_pb2_grpc import ClusterServiceStub

PICTURE: Final = Path(__file__).with_name("watch.svg")
WIDTH: Final = 96  # columns
LOOK_S: Final = 1.0
READS: Final = (3, 5, 9, 14, 22, 30, 26, 34, 41, 38, 44, 52, 47, 40, 45, 49, 46)  # between two looks
FONTS: Final = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"
THEME: Final = TerminalTheme(
    (22, 27, 34),
    (201, 209, 217),
    [
        (72, 79, 88),
        (255, 123, 114),
        (63, 185, 80),
        (210, 153, 34),
        (88, 166, 255),
        (188, 140, 255),
        (57, 197, 207),
        (177, 186, 196),
    ],
    [
        (110, 118, 129),
        (255, 161, 152),
        (86, 211, 100),
        (227, 179, 65),
        (121, 192, 255),
        (210, 168, 255),
        (86, 212, 221),
        (240, 246, 252),
    ],
)


def main() -> None:
    """Take the picture."""
    with tempfile.TemporaryDirectory(prefix="shardhold-") as folder:
        cluster = DevCluster.create(DevDirectory(Path(folder) / "dev"), Plan())
        try:
            cluster.start()
            cluster.init()
            cluster.wait_ready(timeout=60)
            sight = watch(cluster)
        finally:
            cluster.stop()
    PICTURE.write_text(draw(sight))


def watch(cluster: DevCluster) -> Sight:
    """Use the cluster while it is looked at, and return what was seen last."""
    pause = threading.Event()
    cluster.run_pilot(["backup", "create"])
    cluster.run_pilot(["backup", "verify"])
    superuser = WorkloadAPI(f"unix:{cluster.add_identity(Identity(path=SUPERUSER_PATH))}")
    with PinnedChannel(cluster.address, superuser, server_name="nexus.shardhold") as channel:
        cluster_service = ClusterServiceStub(channel)
        watcher = Watcher(lambda: cluster_service.GetStatus(GetStatusRequest(), timeout=10))
        with Client(cluster.address, identity=superuser) as client:
            for number in range(12):
                client.put(f"team/app-{number}/db", {"password": b"an example"})
            for reads in READS:
                if reads == READS[-4]:
                    cluster.kill("keeper-4")
                watcher.look()
                for _ in range(reads):
                    client.get("team/app-1/db")
                pause.wait(LOOK_S)
        sight = watcher.look()
    superuser.close()
    return sight


def draw(sight: Sight) -> str:
    """Return the picture of a terminal that shows *sight*."""
    status = sight.status or {}
    for number, keeper in enumerate(status["keepers"], start=1):
        keeper["address"] = f"10.0.0.{number}:8443"
    at = datetime.fromisoformat(status["told_at"])
    console = Console(record=True, file=io.StringIO(), width=WIDTH, force_terminal=True, highlight=False)
    console.print(render_screen(sight, address="nexus.example.org:8553", width=WIDTH, now=sight.seen_at, at=at))
    svg = console.export_svg(title="pilot watch", theme=THEME, unique_id="watch")
    # A picture in a page loads nothing: fonts are those of the reader.
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!-- Generated with Rich.*?-->\s*", "", svg)
    return re.sub(r"Fira Code, monospace|(?<=ily: )arial", lambda found: FONTS, svg)


if __name__ == "__main__":
    main()
