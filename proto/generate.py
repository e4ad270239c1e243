"""Generate Python code from the contracts in this folder: `python proto/generate.py [--check]`.

The proto folder equals the Python package, so plain protoc writes correct imports. Public stubs go to
`client/shardhold/v1`, private ones to `keeper/v1`. `--check` writes nothing and exits with 1 when the committed code
differs.
"""

import argparse
import filecmp
import os
import shutil
import sys
import tempfile
from pathlib import Path

import grpc_tools
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {"shardhold/v1": ROOT / "client", "keeper/v1": ROOT}


def generate(package: str, into: Path) -> list[Path]:
    """Write the code of *package* below *into*; return the files, relative to *into*."""
    protos = sorted((ROOT / "proto" / package).glob("*.proto"))
    well_known = Path(grpc_tools.__file__).parent / "_proto"
    arguments = ["protoc", f"-I{ROOT / 'proto'}", f"-I{well_known}"]
    arguments += [f"--{plugin}_out={into}" for plugin in ("python", "grpc_python", "mypy", "mypy_grpc")]
    if protoc.main([*arguments, *map(str, protos)]) != 0:
        sys.exit(f"generate: protoc failed on {package}")
    return sorted(path.relative_to(into) for path in into.rglob("*") if path.is_file())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare with the committed code, write nothing")
    check = parser.parse_args().check
    # protoc finds its plugins by PATH; ours are installed beside this Python.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    stale = []
    for package, owner in PACKAGES.items():
        with tempfile.TemporaryDirectory() as folder:
            for name in generate(package, Path(folder)):
                committed = owner / name
                if check:
                    if not committed.exists() or not filecmp.cmp(Path(folder) / name, committed, shallow=False):
                        stale.append(str(committed.relative_to(ROOT)))
                else:
                    committed.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(Path(folder) / name, committed)
    if stale:
        sys.exit("generate: not what the contracts say, run `python proto/generate.py`: " + ", ".join(stale))


if __name__ == "__main__":
    main()
