"""Runs commands on a throw-away overlay over a tree, for tests of the runtime."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from layerfs.mount import Overlay
from layerfs.mounting import open_mount
from layerfs.runtime.launch import run
from layerfs.runtime.process import ProcessSpec, resolve
from layerfs.runtime.settings import RunSettings, Volume
from layerfs.tree.diff import listing
from layerfs.tree.overlay_diff import overlay_changes
from layerfs.tree.whiteouts import OverlayWhiteouts


class NoConfig:
    """An image that says nothing about its process."""

    user = ""
    env = ()
    entrypoint = ()
    cmd = ()
    working_dir = ""


class Box:
    """One container on an overlay: `upper` holds what its runs changed."""

    def __init__(self, lower: Path, directory: Path, *, userxattr: bool = False) -> None:
        self.lower, self.upper = lower, directory / "upper"
        self.upper.mkdir()
        self.upper.chmod(0o755)
        (directory / "work").mkdir()
        options = ("userxattr",) if userxattr else ("index=off",)
        self.mount = Overlay(
            f"layerfs-{os.urandom(6).hex()}", (lower,), self.upper, directory / "work", options
        )

    def spec(self, *command: str, volumes: tuple[str, ...] = (), **settings: object) -> ProcessSpec:
        parsed = tuple(map(Volume.parse, volumes))
        given = RunSettings(command=command, volumes=parsed, **settings)  # type: ignore[arg-type]
        return resolve(NoConfig(), given, hostname="box")

    def run(self, *command: str, on_start: Callable[[int], None] | None = None, **settings: object) -> int:
        return run(self.mount, self.spec(*command, **settings), on_start=on_start)  # type: ignore[arg-type]

    def sh(self, script: str, **settings: object) -> int:
        return self.run("sh", "-c", script, **settings)  # type: ignore[arg-type]

    def diff(self) -> list[str]:
        """List the changes as docker diff does."""
        upper = os.open(self.upper, os.O_RDONLY | os.O_DIRECTORY)
        try:
            changes = overlay_changes(
                upper,
                open_lower=lambda: os.open(self.lower, os.O_RDONLY | os.O_DIRECTORY),
                open_merged=lambda: open_mount(self.mount),
                whiteouts=OverlayWhiteouts(user=False),
            )
            return [f"{kind.value} {os.fsdecode(path)}" for kind, path in listing(changes)]
        finally:
            os.close(upper)


def mounts_of(source: str) -> list[str]:
    """List every process's mounts that have this source: nowhere may one be left."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            table = Path(f"/proc/{pid}/mountinfo").read_text(errors="replace")
        except OSError:
            continue
        found += [line for line in table.splitlines() if f" {source} " in line]
    return found
