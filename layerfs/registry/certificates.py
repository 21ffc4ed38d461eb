"""Certificates for registries: directories as docker and containers-certs.d(5) have them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from layerfs.errors import InvalidError

if TYPE_CHECKING:
    import ssl

    from layerfs.registry.settings import Options


def directory_for(host: str, options: Options) -> Path | None:
    """Find certificates for ``HOST[:PORT]``: the directory that was asked for, else the first there is."""
    if options.cert_dir is not None:
        return options.cert_dir
    places = [options.etc / "containers/certs.d", options.etc / "docker/certs.d"]
    if options.home is not None:
        places.insert(0, options.home / ".config/containers/certs.d")
        places.append(options.home / ".config/docker/certs.d")
    return next((place / host for place in places if (place / host).is_dir()), None)


def context(directory: Path | None, *, verify: bool, client: bool) -> ssl.SSLContext:
    """Make what TLS connections share: the system's authorities and those of ``*.crt`` in `directory`.

    Args:
        directory: holds ``NAME.crt`` (authorities), and ``NAME.cert`` with ``NAME.key`` (our own).
        verify: False takes any certificate.
        client: show the server our own certificate.

    Raises:
        InvalidError: a file there is no certificate, or lacks its other half.
        OSError: one cannot be read.
    """
    import ssl

    if verify:
        made = ssl.create_default_context()
    else:
        # Loading the system's authorities takes more than a handshake does.
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        made.check_hostname = False
        made.verify_mode = ssl.CERT_NONE
    for path in sorted(directory.iterdir()) if directory is not None else ():
        try:
            if path.suffix == ".crt":
                made.load_verify_locations(cafile=path)
            elif path.suffix == ".cert" and client:
                key = path.with_suffix(".key")
                if not key.exists():
                    raise InvalidError(f"{path} has no key beside it", hint=f"put it into {key}")
                made.load_cert_chain(path, key)
            elif path.suffix == ".key" and not path.with_suffix(".cert").exists():
                raise InvalidError(
                    f"{path} has no certificate beside it", hint=f"put it into {path.with_suffix('.cert')}"
                )
        except ssl.SSLError as error:
            raise InvalidError(
                f"{path} cannot be used: {error.reason or 'it holds no certificate in PEM'}",
                hint="*.crt hold authorities, *.cert and *.key our own (containers-certs.d(5))",
            ) from error
    return made
