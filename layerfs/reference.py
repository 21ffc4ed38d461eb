"""Names of images as docker writes and completes them: ``debian`` is ``docker.io/library/debian:latest``."""

import re
from typing import Final, NamedTuple

from layerfs.digest import Digest
from layerfs.errors import InvalidError

DEFAULT_HOST: Final = "docker.io"
DEFAULT_TAG: Final = "latest"
_LOCAL_HOST: Final = "localhost"
_LEGACY_DEFAULT_HOST: Final = "index.docker.io"
_OFFICIAL: Final = "library/"
_MAXIMUM: Final = 255

# The grammar of github.com/distribution/reference (reference.go), compiled when a name is first read.
_HOST_PART = "[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?"
_HOST: Final = rf"(?:{_HOST_PART}(?:\.{_HOST_PART})*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?"
_PATH_PART = "[a-z0-9]+(?:(?:\\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY: Final = rf"{_PATH_PART}(?:/{_PATH_PART})*"
_TAG: Final = "[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}"
_ID: Final = "[0-9a-f]{64}"


class Reference(NamedTuple):
    """A complete name of an image; frozen.

    `tag` is None only where a digest stands without one.
    """

    host: str
    repository: str
    tag: str | None = DEFAULT_TAG
    digest: Digest | None = None

    @classmethod
    def parse(cls, text: str) -> "Reference":
        """Read a name, short or complete; a name with neither tag nor digest gets ``latest``.

        Raises:
            InvalidError: docker would refuse it as a name.
        """
        if not text.strip():
            raise InvalidError("the name of an image is empty")
        if re.fullmatch(_ID, text):
            raise InvalidError(f"{text!r} is an id, not a name")
        rest, at, digest_text = text.partition("@")
        digest = Digest.parse(digest_text) if at else None
        name, tag = _split_tag(rest)
        host, repository = _split_host(name)
        if tag is None and digest is None:
            tag = DEFAULT_TAG
        shown = text[:300]
        if not re.fullmatch(_HOST, host):
            raise InvalidError(f"{shown!r} is not an image name: {host[:100]!r} cannot be a registry's host")
        if not re.fullmatch(_REPOSITORY, repository):
            hint = "a repository's name is lower case" if repository != repository.lower() else None
            # What was written, not what it was completed to.
            written = name.removeprefix(f"{_host_of(name)}/") if _host_of(name) else name
            problem = f"{written[:100]!r} cannot be a repository" if written else "it has no repository"
            raise InvalidError(f"{shown!r} is not an image name: {problem}", hint=hint)
        if len(repository) > _MAXIMUM:
            raise InvalidError(
                f"{shown!r} is not an image name: its repository has over {_MAXIMUM} characters"
            )
        if tag is not None and not re.fullmatch(_TAG, tag):
            problem = f"{tag[:140]!r} cannot be a tag" if tag else "its tag is empty"
            raise InvalidError(f"{shown!r} is not an image name: {problem}")
        return cls(host, repository, tag, digest)

    @classmethod
    def local(cls, text: str) -> "Reference | None":
        """Read a name without a host as one of localhost, as podman names images; None when it has a host.

        Raises:
            InvalidError: docker would refuse it as a name.
        """
        name, _ = _split_tag(text.partition("@")[0])
        return None if _host_of(name) else cls.parse(f"{_LOCAL_HOST}/{text}")

    @property
    def name(self) -> str:
        """Host and repository, without tag and digest."""
        return f"{self.host}/{self.repository}"

    def familiar(self) -> str:
        """Give the shortest text that `parse` completes to the same reference; the tag is always shown."""
        return self._with_suffix(self._familiar_name())

    def _familiar_name(self) -> str:
        if self.host != DEFAULT_HOST:
            return self.name
        short = self.repository.removeprefix(_OFFICIAL)
        for name in (short, self.repository):
            if _split_host(name) == (self.host, self.repository) and not re.fullmatch(_ID, name):
                return name
        return self.name

    def _with_suffix(self, name: str) -> str:
        tag = "" if self.tag is None else f":{self.tag}"
        digest = "" if self.digest is None else f"@{self.digest}"
        return f"{name}{tag}{digest}"

    def __str__(self) -> str:
        return self._with_suffix(self.name)


def _split_tag(text: str) -> tuple[str, str | None]:
    """Part a tag from a name: a colon before the last slash belongs to the host's port."""
    name, colon, tag = text.rpartition(":")
    if not colon or "/" in tag:
        return text, None
    return name, tag


def _host_of(name: str) -> str:
    """Give the host that a name begins with, or ""."""
    first, slash, _ = name.partition("/")
    is_host = "." in first or ":" in first or first == _LOCAL_HOST or first.lower() != first
    return first if slash and is_host else ""


def _split_host(name: str) -> tuple[str, str]:
    """Part and complete host and repository by docker's rule (reference/normalize.go, splitDockerDomain)."""
    given = _host_of(name)
    host, repository = (given, name[len(given) + 1 :]) if given else (DEFAULT_HOST, name)
    if host == _LEGACY_DEFAULT_HOST:
        host = DEFAULT_HOST
    if host == DEFAULT_HOST and "/" not in repository:
        repository = _OFFICIAL + repository
    return host, repository
