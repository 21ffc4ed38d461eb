"""Debian's docker-registry on a free port of loopback, with a file store: plain, with users, and with TLS."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from layerfs.digest import Digest
from layerfs.oci import media_types
from layerfs.oci.descriptor import Descriptor
from layerfs.oci.manifest import Manifest
from layerfs.reference import Reference
from layerfs.registry import manifests
from layerfs.registry.repository import Repository
from layerfs.registry.session import Session
from layerfs.registry.settings import Options
from tests.support.authority import Pair

PROGRAM = "docker-registry"
USER, PASSWORD = "alice", "wonderland"
# bcrypt of PASSWORD with the least cost, so that a request takes no time.
HTPASSWD = "alice:$2y$04$abcdefghijklmnopqrstuujZkTwHUiJ9XdZPwKfcfDo7dMp5DjlTu\n"


def installed() -> bool:
    return shutil.which(PROGRAM) is not None


class Registry:
    """One registry, as a process of its own; a context manager.

    `host` is what stands in image names, `store` the directory of its files.
    """

    def __init__(
        self,
        directory: Path,
        *,
        auth: Mapping[str, Any] | None = None,
        tls: Pair | None = None,
        client_authority: Path | None = None,
        host: str | None = None,
        address: str = "127.0.0.1",
        **more: Any,
    ) -> None:
        """Prepare one below `directory`; `more` are further members of its configuration."""
        directory.mkdir(parents=True, exist_ok=True)
        self.store = directory / "store"
        self._address = address
        with socket.create_server(
            (address, 0), family=socket.AF_INET6 if ":" in address else socket.AF_INET
        ) as found:
            self.port: int = found.getsockname()[1]
        name = f"[{address}]" if ":" in address else address
        self.host = f"{host or name}:{self.port}"
        self.log = directory / "log"
        http: dict[str, Any] = {"addr": f"{name}:{self.port}", "secret": "of the tests"}
        if tls is not None:
            http["tls"] = {"certificate": str(tls.certificate), "key": str(tls.key)}
            if client_authority is not None:
                http["tls"]["clientcas"] = [str(client_authority)]
        settings = {
            "version": 0.1,
            "log": {"level": "warn", "accesslog": {"disabled": True}},
            "storage": {"filesystem": {"rootdirectory": str(self.store)}, "delete": {"enabled": True}},
            "http": http,
            **more,
        }
        if auth is not None:
            settings["auth"] = dict(auth)
        self._settings = directory / "config.yml"
        # JSON is YAML.
        self._settings.write_text(json.dumps(settings))
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [PROGRAM, "serve", str(self._settings)], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        for _ in range(1500):
            if self._process.poll() is not None:
                break
            try:
                socket.create_connection((self._address, self.port), 1).close()
                return
            except OSError:
                time.sleep(0.02)
        self.stop()
        raise AssertionError(f"{PROGRAM} does not start:\n{self.log.read_text()}")

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._process = None

    def repository(self, name: str, options: Options | None = None) -> Repository:
        """Give a repository, in a session of its own."""
        return Session(options or Options()).repository(Reference.parse(f"{self.host}/{name}"))


def htpasswd(directory: Path) -> dict[str, Any]:
    """Give the configuration of a registry that knows one user, `USER` with `PASSWORD`, by basic auth."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "htpasswd").write_text(HTPASSWD)
    return {"htpasswd": {"realm": "the tests", "path": str(directory / "htpasswd")}}


def put_blob(repository: Repository, data: bytes, media_type: str) -> Descriptor:
    """Upload a blob in the plainest way."""
    actions = ("pull", "push")
    with repository.send("POST", "blobs/uploads/", actions=actions, expect=(202,)) as begun:
        place = begun.location()
    digest = Digest.of(data)
    repository.send(
        "PUT", place, query=[("digest", str(digest))], body=data, actions=actions, expect=(201,),
        headers={"Content-Type": "application/octet-stream"},
    ).close()  # fmt: skip
    return Descriptor(media_type, digest, len(data))


def put_artifact(repository: Repository, content: bytes = b"content", tag: str | None = "1") -> Manifest:
    """Upload the smallest image that a registry takes: an empty config and one blob of `content`."""
    config = put_blob(repository, b"{}", media_types.OCI_EMPTY)
    blob = put_blob(repository, content, "application/octet-stream")
    manifest = Manifest.build(config, [blob])
    manifests.put(repository, manifest.raw, manifest.media_type, tag)
    return manifest
