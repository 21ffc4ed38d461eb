"""Where credentials are kept: containers-auth.json(5), docker's config.json, and credential helpers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from layerfs.registry.credentials import Credentials

if TYPE_CHECKING:
    from layerfs.registry.settings import Options


def find(host: str, repository: str, options: Options) -> Credentials | None:
    """Find the credentials for a repository; None when there are none."""
    if options.anonymous:
        return None
    return options.creds
