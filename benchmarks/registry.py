"""A registry of the harness: Debian's docker-registry, its store on the subject's own file system."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from benchmarks.commands import CommandError, Commands, missing
from benchmarks.images.image import TAG, Image
from benchmarks.link import Link

_PROGRAM: Final = "docker-registry"
_CONFIG: Final = """version: 0.1
log: {{accesslog: {{disabled: true}}, level: error}}
storage: {{filesystem: {{rootdirectory: {store}}}}}
http: {{addr: "{address}", secret: none}}
"""
_PORT: Final = 5000


class Registry:
    """A running registry.

    Attributes:
        address: its host and port; it speaks plain HTTP.
    """

    def __init__(self, address: str, store: Path) -> None:
        self.address = address
        self._store = store

    def reference(self, image: Image) -> str:
        """Give the name of an image in it."""
        return f"{self.address}/{image.name}:{TAG}"

    def stored(self) -> int:
        """Give how many bytes of blobs it keeps."""
        return sum(path.stat().st_size for path in self._store.rglob("data"))

    def put(self, image: Image, compression: str) -> None:
        """Upload one of the image's layouts, blob by blob."""
        layout = image.layout(compression)
        index = json.loads((layout / "index.json").read_bytes())["manifests"][0]
        manifest = _blob(layout, index).read_bytes()
        described = json.loads(manifest)
        with contextlib.closing(http.client.HTTPConnection(self.address)) as connection:
            for each in (described["config"], *described["layers"]):
                self._upload(connection, image.name, _blob(layout, each), each["digest"])
            path = f"/v2/{image.name}/manifests/{TAG}"
            _ask(connection, "PUT", path, manifest, {"Content-Type": index["mediaType"]})

    def _upload(self, connection: http.client.HTTPConnection, name: str, blob: Path, digest: str) -> None:
        place = _ask(connection, "POST", f"/v2/{name}/blobs/uploads/", b"", {})
        with blob.open("rb") as data:
            headers = {
                "Content-Length": str(blob.stat().st_size),
                "Content-Type": "application/octet-stream",
            }
            separator = "&" if "?" in place else "?"
            connection.request("PUT", f"{place}{separator}digest={digest}", data, headers)
            _read(connection)


@contextlib.contextmanager
def serving(
    commands: Commands, place: Path, images: Sequence[tuple[Image, str]] = (), *, over: Link | None = None
) -> Iterator[Registry]:
    """Keep a registry running for the length of a block.

    Args:
        place: a directory for all that it keeps.
        images: what it holds from the beginning, each with the compression of the layout.
        over: a link at whose far end it stands; without one it is on this host.
    """
    place.mkdir()
    with contextlib.ExitStack() as stack:
        if images:
            with _started(commands, place, None) as filled:
                for image, compression in images:
                    filled.put(image, compression)
        yield stack.enter_context(_started(commands, place, over))


@contextlib.contextmanager
def _started(commands: Commands, place: Path, link: Link | None) -> Iterator[Registry]:
    address = f"{link.address}:{_PORT}" if link else f"127.0.0.1:{_free_port()}"
    config = place / "config.yml"
    config.write_text(_CONFIG.format(store=place / "store", address=address))
    command = [*(link.inside if link else ()), _PROGRAM, "serve", config]
    registry = Registry(address, place / "store")
    # It is none of the subject's own, and its work is not counted.
    with commands.daemon(command, log=place / "log", ready=lambda: _answers(address), scenery=True):
        yield registry


def _answers(address: str) -> bool:
    with contextlib.closing(http.client.HTTPConnection(address, timeout=5)) as connection:
        try:
            connection.request("GET", "/v2/")
            return connection.getresponse().status == http.client.OK
        except OSError:
            return False


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def _ask(
    connection: http.client.HTTPConnection, method: str, path: str, body: bytes, headers: dict[str, str]
) -> str:
    connection.request(method, path, body, headers)
    return _read(connection)


def _read(connection: http.client.HTTPConnection) -> str:
    """Read an answer to its end and give the place that it names, "" if none."""
    answer = connection.getresponse()
    said = answer.read()
    if answer.status not in (http.client.CREATED, http.client.ACCEPTED):
        raise CommandError(f"{_PROGRAM} answered {answer.status}: {said[:300]!r}")
    return answer.headers.get("Location", "")


def _blob(layout: Path, descriptor: dict[str, str]) -> Path:
    return layout / "blobs" / descriptor["digest"].replace(":", "/")


def why_not() -> str:
    """Say why there can be no registry here, "" if there can."""
    return missing(_PROGRAM)
