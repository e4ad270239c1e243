"""The store and the audit of a cluster, as files."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pilot.dev.cluster import DevCluster


class ClusterStore:
    """The folders of the nexus of *dev*."""

    def __init__(self, dev: DevCluster) -> None:
        self._dev = dev

    def copy(self, name: str) -> Path:
        """Copy the store of a nexus that does not run, and return where to."""
        self._check_unused()
        return Path(shutil.copytree(self._dev.directory.data, self._dev.directory.root / f"copy-{name}"))

    def put_back(self, copy: Path) -> None:
        """Put a copy in the place of the store of a nexus that does not run."""
        self._check_unused()
        shutil.rmtree(self._dev.directory.data)
        shutil.copytree(copy, self._dev.directory.data)

    def list_audit(self, actor: str) -> list[Mapping[str, Any]]:
        """Return the audit's entries of one caller; those of changes come a moment later than the others."""
        files = sorted(self._dev.directory.audit.glob("*.jsonl"))
        lines = (json.loads(line) for file in files for line in file.read_text().splitlines())
        return [line["entry"] for line in lines if line.get("entry", {}).get("actor") == actor]

    def _check_unused(self) -> None:
        assert not self._dev.is_alive("nexus"), "the nexus runs"
