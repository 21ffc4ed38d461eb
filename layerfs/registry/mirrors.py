"""Where a repository really is: mirrors, other locations, blocked names (containers-registries.conf(5)).

Names without a host were completed before, as docker does it: always by docker.io. What that manual has for
them, `unqualified-search-registries` and aliases, is not looked at: a name means one image on every machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn

from layerfs.errors import InvalidError, UntrustedError

if TYPE_CHECKING:
    from layerfs.reference import Reference
    from layerfs.registry.settings import Options

_LARGEST: Final = 4 << 20
_WHEN: Final = {
    "": (True, True),
    "all": (True, True),
    "digest-only": (False, True),
    "tag-only": (True, False),
}


class Endpoint(NamedTuple):
    """A registry's host and a repository there, as requests are sent to.

    `tags` and `digests` say what is looked for there by.
    """

    host: str
    repository: str
    insecure: bool = False
    is_mirror: bool = False
    tags: bool = True
    digests: bool = True


def endpoints(reference: Reference, options: Options) -> tuple[Endpoint, ...]:
    """Give the places to pull from, best first; the last is the registry itself, the place to push to.

    Raises:
        InvalidError: a file of the configuration is not what it should be.
        UntrustedError: the configuration blocks the name.
    """
    own = Endpoint(reference.host, reference.repository)
    tables = _tables(options)
    found = _choose(tables, reference)
    if found is None:
        return (own,)
    table, path = found
    prefix = _text(table, "prefix", path) or _text(table, "location", path)
    if _flag(table, "blocked", path):
        raise UntrustedError(
            f"{reference.name} is blocked by {path}", hint=f"whoever wrote {path} does not want it to be used"
        )
    own = _moved(own, prefix, _text(table, "location", path), path)
    own = own._replace(insecure=_flag(table, "insecure", path))
    by_digest = _flag(table, "mirror-by-digest-only", path)
    mirrors = []
    for mirror in _list(table, "mirror", path):
        when = _text(mirror, "pull-from-mirror", path)
        if when not in _WHEN:
            _fail(path, f"pull-from-mirror is {when!r}, and can be {', '.join(filter(None, _WHEN))}")
        tags, digests = (False, True) if by_digest else _WHEN[when]
        place = _moved(
            Endpoint(reference.host, reference.repository), prefix, _text(mirror, "location", path), path
        )
        mirrors.append(
            place._replace(
                insecure=_flag(mirror, "insecure", path), is_mirror=True, tags=tags, digests=digests
            )
        )
    return (*mirrors, own)


def files(options: Options) -> Iterator[Path]:
    """List the files of the configuration, in the order of their word: what comes later wins.

    As containers/image has it: the user's own registries.conf in place of the system's, then the directories
    registries.conf.d of both, the user's last; CONTAINERS_REGISTRIES_CONF in the environment is in place of
    the first.
    """
    main = options.etc / "containers/registries.conf"
    user = None if options.config_home is None else options.config_home / "containers/registries.conf"
    named = options.environment.get("CONTAINERS_REGISTRIES_CONF")
    if named:
        yield Path(named)
    elif user is not None and user.exists():
        yield user
    elif main.exists():
        yield main
    for directory in (main, user):
        if directory is not None:
            below = directory.with_name("registries.conf.d")
            try:
                names = sorted(path for path in below.iterdir() if path.suffix == ".conf")
            except (FileNotFoundError, NotADirectoryError, PermissionError):
                continue
            yield from names


def _tables(options: Options) -> dict[str, tuple[dict[str, Any], Path]]:
    """Read all ``[[registry]]`` tables by their prefix."""
    found: dict[str, tuple[dict[str, Any], Path]] = {}
    for path in files(options):
        try:
            with path.open("rb") as file:
                data = file.read(_LARGEST + 1)
        except FileNotFoundError as error:
            raise InvalidError(f"there is no {path}", hint="correct CONTAINERS_REGISTRIES_CONF") from error
        if len(data) > _LARGEST:
            _fail(path, f"it has more than {_LARGEST} bytes")
        if not data.strip():
            continue
        for table in _list(_parse(data, path), "registry", path):
            prefix = _text(table, "prefix", path) or _text(table, "location", path)
            if not prefix:
                _fail(path, "a [[registry]] has neither prefix nor location")
            found[prefix] = (table, path)
    return found


def _parse(data: bytes, path: Path) -> dict[str, Any]:
    import tomllib

    try:
        found = tomllib.loads(data.decode())
    except (ValueError, RecursionError) as error:
        words = " ".join(str(error).split())[:300]
        raise InvalidError(
            f"{path} is not valid TOML: {words}", hint="see containers-registries.conf(5)"
        ) from error
    old = found.get("registries")
    if not isinstance(old, dict):
        return found
    # Version 1 of the format, which has lists of hosts.
    tables: dict[str, dict[str, Any]] = {}
    for name, member in (("insecure", "insecure"), ("block", "blocked")):
        listed = old.get(name, {})
        hosts = listed.get("registries", []) if isinstance(listed, dict) else None
        if not isinstance(hosts, list):
            _fail(path, f"registries.{name} is no table with a list of registries")
        for host in hosts:
            tables.setdefault(str(host), {"location": str(host)})[member] = True
    return {"registry": list(tables.values())}


def _choose(
    tables: dict[str, tuple[dict[str, Any], Path]], reference: Reference
) -> tuple[dict[str, Any], Path] | None:
    """Pick the table with the longest prefix of the name."""
    whole = str(reference)
    best = max((prefix for prefix in tables if _fits(prefix, reference.host, whole)), key=len, default=None)
    return None if best is None else tables[best]


def _fits(prefix: str, host: str, whole: str) -> bool:
    if prefix.startswith("*."):
        return host.endswith(prefix[1:])
    # A colon after a host begins a port, which makes it another one.
    marks = "/@:" if "/" in prefix else "/@"
    return whole.startswith(prefix) and (len(whole) == len(prefix) or whole[len(prefix)] in marks)


def _moved(place: Endpoint, prefix: str, location: str, path: Path) -> Endpoint:
    """Put a location in place of the prefix of a name."""
    if not location or location == prefix:
        return place
    if prefix.startswith("*."):
        # Only the host is what the prefix stands for.
        rest = f"/{place.repository}"
    else:
        rest = f"{place.host}/{place.repository}"[len(prefix) :]
    host, slash, repository = f"{location.rstrip('/')}{rest}".partition("/")
    if not slash or not host or not repository:
        _fail(path, f"location {location!r} makes no name of a repository")
    return place._replace(host=host, repository=repository)


def _text(table: dict[str, Any], name: str, path: Path) -> str:
    found = table.get(name, "")
    if not isinstance(found, str):
        _fail(path, f"{name} is no text")
    return found


def _flag(table: dict[str, Any], name: str, path: Path) -> bool:
    found = table.get(name, False)
    if not isinstance(found, bool):
        _fail(path, f"{name} is neither true nor false")
    return found


def _list(table: dict[str, Any], name: str, path: Path) -> list[dict[str, Any]]:
    found = table.get(name, [])
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
        _fail(path, f"[[{name}]] is no array of tables")
    return found


def _fail(path: Path, problem: str) -> NoReturn:
    raise InvalidError(f"{path}: {problem}", hint="see containers-registries.conf(5)")
