"""An image's config: its layers' diff ids, how it came about, and how its process is to run."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from layerfs.digest import Digest
from layerfs.oci import document
from layerfs.oci.document import Members
from layerfs.oci.platform import Platform
from layerfs.value import field, frozen, replace


@frozen
class History:
    """One step of an image's making; `empty_layer` says that it added no layer.

    `created` is an RFC 3339 time, as the document has it.
    """

    created: str | None = None
    author: str | None = None
    created_by: str | None = None
    comment: str | None = None
    empty_layer: bool = False

    @classmethod
    def of(cls, members: Members) -> History:
        """Read an item of a config's ``history``."""
        return cls(
            members.optional_text("created"),
            members.optional_text("author"),
            members.optional_text("created_by"),
            members.optional_text("comment"),
            members.flag("empty_layer"),
        )

    def members(self) -> dict[str, Any]:
        """Give the JSON members."""
        texts = {
            "created": self.created,
            "author": self.author,
            "created_by": self.created_by,
            "comment": self.comment,
        }
        found: dict[str, Any] = {name: text for name, text in texts.items() if text is not None}
        if self.empty_layer:
            found["empty_layer"] = True
        return found


@frozen
class ContainerConfig:
    """How the image's process is to run: the ``config`` member, whose words are not to be trusted.

    `env` holds ``NAME=VALUE`` texts, `exposed_ports` texts like ``80/tcp``, `volumes` paths. Absent
    members are empty; `members` is the whole object, unknown members included.
    """

    user: str = ""
    env: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    working_dir: str = ""
    labels: Mapping[str, str] = field(default_factory=dict, hash=False)
    exposed_ports: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()
    stop_signal: str = ""
    shell: tuple[str, ...] = ()
    members: Mapping[str, Any] = field(default_factory=dict, hash=False, repr=False)

    @classmethod
    def of(cls, members: Members) -> ContainerConfig:
        """Read a config's ``config`` object (image-spec config.md; `Shell` is Docker's)."""
        return cls(
            members.optional_text("User") or "",
            members.texts("Env"),
            members.text_or_texts("Entrypoint"),
            members.text_or_texts("Cmd"),
            members.optional_text("WorkingDir") or "",
            members.text_map("Labels"),
            members.keys("ExposedPorts"),
            members.keys("Volumes"),
            members.optional_text("StopSignal") or "",
            members.texts("Shell"),
            members.value,
        )


@frozen
class ImageConfig:
    """An image's config (image-spec config.md); `raw` is the document as it came, byte for byte.

    `diff_ids` stand bottom first. `architecture` and `os` are empty where the document is silent.
    """

    raw: bytes = field(repr=False)
    digest: Digest
    architecture: str
    os: str
    variant: str
    created: str | None
    author: str | None
    diff_ids: tuple[Digest, ...]
    history: tuple[History, ...]
    config: ContainerConfig
    os_version: str = ""
    os_features: tuple[str, ...] = ()

    @classmethod
    def parse(cls, raw: bytes) -> ImageConfig:
        """Read a config.

        Raises:
            BudgetError: it has more than 4 MiB.
            DocumentError: it is not an image's config.
        """
        members = document.load(raw, what="image config")
        rootfs = members.members("rootfs")
        if rootfs.text("type") != "layers":
            rootfs.fail("type", "'layers' is needed")
        return cls(
            raw,
            Digest.of(raw),
            members.optional_text("architecture") or "",
            members.optional_text("os") or "",
            members.optional_text("variant") or "",
            members.optional_text("created"),
            members.optional_text("author"),
            rootfs.digests("diff_ids"),
            tuple(map(History.of, members.each("history"))),
            ContainerConfig.of(members.optional_members("config") or Members({}, "config")),
            members.optional_text("os.version") or "",
            members.texts("os.features"),
        )

    @classmethod
    def build(
        cls,
        *,
        diff_ids: Sequence[Digest] = (),
        history: Sequence[History] = (),
        platform: Platform | None = None,
        created: str | None = None,
        author: str | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> ImageConfig:
        """Write a config; equal arguments give equal bytes.

        Args:
            diff_ids: bottom first.
            platform: this machine's when left out.
            created: RFC 3339.
            config: members of the ``config`` object by their names in the document (``Env``, ``Cmd``, ...).
        """
        machine = platform or Platform.host()
        found: dict[str, Any] = {}
        if created is not None:
            found["created"] = created
        if author is not None:
            found["author"] = author
        found |= machine.members()
        found["config"] = dict(config or {})
        found["rootfs"] = {"type": "layers", "diff_ids": [str(diff_id) for diff_id in diff_ids]}
        found["history"] = [item.members() for item in history]
        return cls.parse(document.dump(found))

    @property
    def platform(self) -> Platform:
        """The platform that the image is for."""
        return Platform(self.os, self.architecture, self.variant, self.os_version, self.os_features)

    @property
    def chain_ids(self) -> tuple[Digest, ...]:
        """The name of each layer together with all below it, bottom first (config.md, "Layer ChainID")."""
        return chain_ids(self.diff_ids)

    def with_diff_ids(self, diff_ids: Sequence[Digest]) -> ImageConfig:
        """Give the config of an image whose layers are other streams of the same content.

        Everything else stays, members unknown here included; the image's id is another.

        Args:
            diff_ids: one for each layer there is, bottom first.
        """
        found = dict(document.load(self.raw, what="image config").value)
        found["rootfs"] = {**found["rootfs"], "diff_ids": [str(diff_id) for diff_id in diff_ids]}
        return ImageConfig.parse(document.dump(found))

    def with_layer(
        self,
        diff_id: Digest | None,
        history: History,
        *,
        config: Mapping[str, Any] | None = None,
    ) -> ImageConfig:
        """Give the config of the image that this step makes; members unknown here are kept.

        Args:
            diff_id: the new layer's, None for a step that changes the config alone.
            history: the step; its time and author become the image's own, where it has them.
            config: members of the ``config`` object that change, by their names in the document; None takes
                a member away.
        """
        found = dict(document.load(self.raw, what="image config").value)
        if history.created is not None:
            found["created"] = history.created
        if history.author is not None:
            found["author"] = history.author
        rootfs = dict(found["rootfs"])
        rootfs["diff_ids"] = [str(known) for known in self.diff_ids]
        if diff_id is not None:
            rootfs["diff_ids"].append(str(diff_id))
        found["rootfs"] = rootfs
        step = replace(history, empty_layer=diff_id is None)
        found["history"] = [*(found.get("history") or ()), step.members()]
        if config:
            merged = {**(found.get("config") or {}), **config}
            found["config"] = {name: value for name, value in merged.items() if value is not None}
        return ImageConfig.parse(document.dump(found))


def chain_ids(diff_ids: Iterable[Digest]) -> tuple[Digest, ...]:
    """Give the chain id at each layer, bottom first (config.md, "Layer ChainID")."""
    chain: list[Digest] = []
    for diff_id in diff_ids:
        if chain:
            text = f"{chain[-1]} {diff_id}".encode()
            chain.append(Digest("sha256", hashlib.sha256(text, usedforsecurity=False).hexdigest()))
        else:
            chain.append(diff_id)
    return tuple(chain)
