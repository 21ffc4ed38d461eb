"""Where credentials are kept: containers-auth.json(5), docker's config.json, and credential helpers."""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from layerfs.errors import InvalidError, NotFoundError, TransportError
from layerfs.files import Lock, write_atomic
from layerfs.registry import helpers
from layerfs.registry.credentials import Credentials

if TYPE_CHECKING:
    from layerfs.registry.settings import Options

_HUB: Final = "docker.io"
# What docker calls Docker Hub in its own files, and to credential helpers.
_HUB_KEY: Final = "https://index.docker.io/v1/"
_HUB_NAMES: Final = (_HUB, "index.docker.io", "registry-1.docker.io")
_MAXIMUM: Final = 4 << 20


def find(
    host: str, repository: str, options: Options, *, warn: Callable[[str], None] = lambda message: None
) -> Credentials | None:
    """Find the credentials for a repository; those of the longest key that it begins with.

    Args:
        host: the registry, as image names have it.
        repository: the repository, "" for the registry itself.
        options: what was given on the way, and the places of files.
        warn: told of a helper that fails; another place may still have them.

    Returns:
        None when there are none.

    Raises:
        InvalidError: a file is not what it should be.
        NotFoundError: the file that was asked for is missing.
    """
    if options.anonymous:
        return None
    if options.creds is not None:
        return options.creds
    return next((found for _, found in _search(host, repository, options, warn)), None)


def where(host: str, options: Options) -> Path | None:
    """Name the file that credentials for a registry are found in, None when there are none."""
    return next((path for path, _ in _search(host, "", options, lambda message: None)), None)


def store(host: str, credentials: Credentials, options: Options) -> Path:
    """Keep credentials for a registry, ``HOST[/NAMESPACE]``, and name the file that knows of them.

    The file is replaced as a whole, with mode 0600; the rest of what it says is kept. Where it names a
    credential helper for the registry the secret goes there.

    Raises:
        InvalidError: the file is not what it should be.
        TransportError: a helper failed.
        OSError: the file cannot be written.
    """
    path = target(options)
    with _changed(path) as config:
        auths = config.setdefault("auths", {})
        key = _key(host, path)
        helper = _helper(config, host)
        for known in _same(auths, host):
            del auths[known]
        if helper is not None:
            helpers.store(helper, _server(host), credentials)
            auths[key] = {}
        else:
            auths[key] = {"auth": credentials.basic().removeprefix("Basic ")}
    return path


def remove(host: str, options: Options) -> Path:
    """Forget the credentials for a registry, ``HOST[/NAMESPACE]``, and name the file that knew of them.

    Raises:
        NotFoundError: there are none in the file that `store` writes.
        InvalidError: the file is not what it should be.
        TransportError: a helper failed.
        OSError: the file cannot be written.
    """
    path = target(options)
    if _read(path) is None:
        raise NotFoundError(f"{path} has no credentials for {host}")
    with _changed(path) as config:
        auths = config.get("auths", {})
        helper = _helper(config, host)
        known = _same(auths, host)
        if helper is not None:
            helpers.erase(helper, _server(host))
        elif not known:
            raise NotFoundError(f"{path} has no credentials for {host}")
        for key in known:
            del auths[key]
    return path


def remove_all(options: Options) -> list[str]:
    """Forget all credentials of the file that `store` writes, and give the names of the registries."""
    path = target(options)
    config = _read(path) or {}
    names = sorted({_plain(key) for key in config.get("auths", {})} | set(config.get("credHelpers", {})))
    for name in names:
        remove(name, options)
    return names


def target(options: Options) -> Path:
    """Name the file that logins are written to, as podman and skopeo do (containers-auth.json(5))."""
    explicit = _explicit(options)
    if explicit is not None:
        return explicit
    runtime = options.environment.get("XDG_RUNTIME_DIR")
    if runtime:
        return Path(runtime) / "containers/auth.json"
    # Nobody else may make a directory below /run.
    if os.geteuid() == 0 or options.config_home is None:
        return Path(f"/run/containers/{os.geteuid()}/auth.json")
    return options.config_home / "containers/auth.json"


def files(options: Options) -> list[Path]:
    """List the files that are looked into, first the one that `store` writes."""
    if _explicit(options) is not None:
        return [target(options)]
    found = [target(options)]
    if options.config_home is not None:
        found.append(options.config_home / "containers/auth.json")
    docker = options.environment.get("DOCKER_CONFIG")
    if docker:
        found.append(Path(docker) / "config.json")
    elif options.home is not None:
        found.append(options.home / ".docker/config.json")
    if options.home is not None:
        found.append(options.home / ".dockercfg")
    return found


def _explicit(options: Options) -> Path | None:
    if options.authfile is not None:
        return options.authfile
    named = options.environment.get("REGISTRY_AUTH_FILE")
    return Path(named) if named else None


def _search(
    host: str, repository: str, options: Options, warn: Callable[[str], None]
) -> Iterator[tuple[Path, Credentials]]:
    for path in files(options):
        config = _read(path)
        if config is None:
            if _explicit(options) is not None and options.authfile is not None:
                raise NotFoundError(
                    f"there is no {path}, which was to hold credentials",
                    hint="correct --authfile, or `layerfs login --authfile` makes it",
                )
            continue
        try:
            found = _in_config(config, host, repository, path)
        except TransportError as error:
            warn(f"{path}: {error}")
            continue
        if found is not None:
            yield path, found


def _in_config(config: dict[str, Any], host: str, repository: str, path: Path) -> Credentials | None:
    helper = _helper(config, host)
    if helper is not None:
        found = helpers.get(helper, _server(host))
        if found is not None:
            return found
    auths = config.get("auths", {})
    names = [host]
    for part in filter(None, repository.split("/")):
        names.append(f"{names[-1]}/{part}")
    for name in reversed(names):
        for key in _same(auths, name):
            found = _entry(auths[key], f"{path}: auths[{key!r}]")
            if found is not None:
                return found
    return None


def _same(auths: dict[str, Any], name: str) -> list[str]:
    """Give the keys that mean this ``HOST[/NAMESPACE]``, its own spelling first."""
    host, slash, rest = name.partition("/")
    hosts = _HUB_NAMES if host in _HUB_NAMES else (host,)
    names = {f"{each}{slash}{rest}" for each in hosts}
    return sorted((key for key in auths if _plain(key) in names), key=lambda key: key != name)


def _plain(key: str) -> str:
    """Give what a key means: docker's begin with a scheme, and end with the path of an API.

    >>> _plain("https://index.docker.io/v1/"), _plain("quay.io/team")
    ('index.docker.io', 'quay.io/team')
    """
    scheme, mark, rest = key.partition("://")
    if mark and scheme in ("https", "http"):
        return rest.partition("/")[0]
    return key.removesuffix("/v1/").removesuffix("/v2/").rstrip("/")


def _key(host: str, path: Path) -> str:
    return _HUB_KEY if host in _HUB_NAMES and path.name == "config.json" else host


def _server(host: str) -> str:
    return _HUB_KEY if host in _HUB_NAMES else host.partition("/")[0]


def _helper(config: dict[str, Any], host: str) -> str | None:
    """Name the credential helper for a registry, None when there is none."""
    own = config.get("credHelpers", {})
    name = host.partition("/")[0]
    for each in (*_HUB_NAMES, _HUB_KEY) if name in _HUB_NAMES else (name,):
        if isinstance(own.get(each), str) and own[each]:
            return str(own[each])
    general = config.get("credsStore")
    return general if isinstance(general, str) and general else None


def _entry(entry: object, what: str) -> Credentials | None:
    if not isinstance(entry, dict):
        raise InvalidError(f"{what} is no object")
    texts = {name: value for name, value in entry.items() if isinstance(value, str)}
    username, password = texts.get("username", ""), texts.get("password", "")
    if texts.get("auth"):
        try:
            login = base64.b64decode(texts["auth"], validate=True).decode(errors="surrogateescape")
        except (binascii.Error, ValueError):
            raise InvalidError(f"{what}.auth is not base64", hint="`layerfs login` writes it anew") from None
        username, colon, password = login.partition(":")
        if not colon:
            raise InvalidError(f"{what}.auth is not USER:PASSWORD", hint="`layerfs login` writes it anew")
        password = password.rstrip("\0")
    identity, registry = texts.get("identitytoken", ""), texts.get("registrytoken", "")
    if not (password or identity or registry):
        return None
    return Credentials(username, password, identity, registry)


def _read(path: Path) -> dict[str, Any] | None:
    """Read a file of credentials, None when there is none that we may read.

    Raises:
        InvalidError: it is not JSON of the right shape.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_MAXIMUM + 1)
    except (FileNotFoundError, NotADirectoryError, PermissionError, IsADirectoryError):
        return None
    if len(data) > _MAXIMUM:
        raise InvalidError(f"{path} is too large for a file of credentials")
    if not data.strip():
        return {}
    try:
        config = json.loads(data)
    except (ValueError, RecursionError) as error:
        # The parser's own words may quote the file.
        raise InvalidError(f"{path} is not valid JSON", hint="correct or remove it") from error
    if not isinstance(config, dict):
        raise InvalidError(f"{path} is not a JSON object", hint="correct or remove it")
    if path.name == ".dockercfg":
        return {"auths": config}
    for name in ("auths", "credHelpers"):
        if config.get(name) is None:
            config.pop(name, None)
        elif not isinstance(config[name], dict):
            raise InvalidError(f"{path}: {name} is no object", hint="correct or remove it")
    return config


@contextlib.contextmanager
def _changed(path: Path) -> Iterator[dict[str, Any]]:
    """Give what a file of credentials says, to be changed and written; whoever else wants that waits."""
    # A link to a file elsewhere stays one.
    real = Path(os.path.realpath(path))
    real.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with Lock(real.with_name(f".{real.name}.lock")) as lock:
        try:
            config = _read(path) or {}
            yield config
            write_atomic(real, json.dumps(config, indent="\t").encode() + b"\n", mode=0o600)
        finally:
            lock.path.unlink(missing_ok=True)
