"""Credentials for registries: what they are and where they come from."""

from __future__ import annotations

import base64

from layerfs.errors import InvalidError
from layerfs.value import field, frozen


@frozen
class Credentials:
    """A user's name and password for a registry, or a token in their place; never shown.

    `identity_token` is exchanged for access tokens (docker's ``identitytoken``), `registry_token` is one.
    """

    username: str = ""
    password: str = field(default_factory=str, repr=False)
    identity_token: str = field(default_factory=str, repr=False)
    registry_token: str = field(default_factory=str, repr=False)

    @classmethod
    def parse(cls, text: str) -> Credentials:
        """Read ``USER[:PASSWORD]``.

        Raises:
            InvalidError: the user's name is empty.
        """
        username, _, password = text.partition(":")
        if not username:
            raise InvalidError("the credentials have no user name", hint="write them as USER:PASSWORD")
        return cls(username, password)

    def basic(self) -> str:
        """Write the value of an Authorization header (RFC 7617)."""
        # What was given on a command line may be no UTF-8.
        login = f"{self.username}:{self.password}".encode(errors="surrogateescape")
        return "Basic " + base64.b64encode(login).decode()

    @property
    def secrets(self) -> tuple[str, ...]:
        """What must not stand in any message."""
        encoded = self.basic().removeprefix("Basic ") if self.password else ""
        return tuple(filter(None, (self.password, self.identity_token, self.registry_token, encoded)))
