"""What images are made of: the files of each layer that we put on the base, those that a later layer hides included."""

import json
import re
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tests.containers.stack import ROOT, inspect


@dataclass(frozen=True)
class File:
    """One entry of a layer."""

    uid: int
    mode: int  # the permissions
    kind: bytes  # as tarfile has it
    content: bytes


Layer = Mapping[str, File]  # by path, without the leading slash


def read_base() -> str:
    """Return the base image that the Dockerfile names."""
    found = re.search(r"^ARG BASE=(\S+)$", (ROOT / "deploy" / "Dockerfile").read_text(), re.MULTILINE)
    assert found
    return found[1]


def list_layers(images: Sequence[str]) -> dict[str, list[str]]:
    """Return the digests of the layers that we put on the base, lowest first, for each image."""
    base, *ours = (found["RootFS"]["Layers"] for found in inspect(read_base(), *images))
    assert all(layers[: len(base)] == base for layers in ours)
    return {image: layers[len(base) :] for image, layers in zip(images, ours, strict=True)}


def load_layers(images: Sequence[str]) -> dict[str, list[Layer]]:
    """Read the layers that we put on the base, lowest first, for each image."""
    counts = {image: len(layers) for image, layers in list_layers(images).items()}
    with tempfile.TemporaryFile() as file:
        subprocess.run(["docker", "save", *images], stdout=file, check=True, timeout=300)
        file.seek(0)
        with tarfile.open(fileobj=file) as archive:
            known: dict[str, Layer] = {}
            found: dict[str, list[Layer]] = {}
            for image in json.loads(_read(archive, "manifest.json")):
                name = image["RepoTags"][0]
                own = image["Layers"][-counts[name] :]
                known |= {layer: _load_layer(archive, layer) for layer in own if layer not in known}
                found[name] = [known[layer] for layer in own]
            return found


def _load_layer(archive: tarfile.TarFile, name: str) -> Layer:
    stream = archive.extractfile(name)  # follows the link to a layer that is there once more
    assert stream is not None
    with tarfile.open(fileobj=stream) as layer:
        return {
            entry.name.strip("/"): File(
                entry.uid, entry.mode & 0o7777, entry.type, _read(layer, entry.name) if entry.isfile() else b""
            )
            for entry in layer
        }


def _read(archive: tarfile.TarFile, name: str) -> bytes:
    stream = archive.extractfile(name)
    assert stream is not None
    return stream.read()
