"""Write the SVID of this process into the files of a folder, once, to try a program that reads files.

    python examples/svid_files.py FOLDER

In production, spiffe-helper does this, and keeps the files fresh.
"""

import sys
from contextlib import closing
from pathlib import Path

from shardhold import WorkloadAPI


def write_svid(folder: Path) -> None:
    """Write svid.pem, svid_key.pem and bundle.pem, readable by their owner alone."""
    with closing(WorkloadAPI()) as identity:
        svid = identity.current()
    folder.mkdir(mode=0o700, exist_ok=True)
    parts = {"svid.pem": svid.certificates_pem, "svid_key.pem": svid.key_pem, "bundle.pem": svid.bundle_pem}
    for name, part in parts.items():
        file = folder / name
        file.touch(mode=0o600)
        file.write_bytes(part)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"svid_files: got {len(sys.argv) - 1} arguments, want the folder to write to")
    write_svid(Path(sys.argv[1]))
