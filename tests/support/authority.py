"""A certificate authority of the tests, made with openssl(1)."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import NamedTuple

EC = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1")


class Pair(NamedTuple):
    """A certificate and its key, in PEM."""

    certificate: Path
    key: Path


def openssl(*words: object, stdin: bytes = b"") -> bytes:
    return subprocess.run(["openssl", *map(str, words)], input=stdin, capture_output=True, check=True).stdout


class Authority:
    """An authority that nobody knows but whoever is given `certificate`."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.certificate = directory / "authority.crt"
        self._key = directory / "authority.pem"
        openssl(
            "req", "-x509", *EC, "-nodes", "-days", "2",
            "-subj", "/CN=authority of the tests", "-keyout", self._key, "-out", self.certificate,
        )  # fmt: skip

    def issue(self, *names: str, days: int = 2) -> Pair:
        """Make a certificate for hosts (addresses too), or for a client where there is no host."""
        stem = self.directory / f"issued-{len(list(self.directory.glob('issued-*.cert')))}"
        pair = Pair(stem.with_suffix(".cert"), stem.with_suffix(".key"))
        kinds = [f"{'IP' if name[0].isdigit() else 'DNS'}:{name}" for name in names or ("client",)]
        request = openssl(
            "req", "-new", *EC, "-nodes",
            "-subj", f"/CN={(names or ('client',))[0]}", "-addext", f"subjectAltName={','.join(kinds)}",
            "-keyout", pair.key,
        )  # fmt: skip
        made = openssl(
            "x509", "-req", "-CA", self.certificate, "-CAkey", self._key, "-days", days,
            "-copy_extensions", "copy", stdin=request,
        )  # fmt: skip
        pair.certificate.write_bytes(made)
        return pair

    def certs_d(self, name: str, *, client: Pair | None = None) -> Path:
        """Make a directory as containers-certs.d(5) has them, and give it."""
        made = self.directory / name
        made.mkdir(exist_ok=True)
        (made / "ca.crt").write_bytes(self.certificate.read_bytes())
        if client is not None:
            (made / "client.cert").write_bytes(client.certificate.read_bytes())
            (made / "client.key").write_bytes(client.key.read_bytes())
        return made
