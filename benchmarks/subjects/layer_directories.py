"""What union mounts of plain directories share: layers unpacked by tar, and a writable directory on top."""

from __future__ import annotations

import abc
import os
import shutil
import tarfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.commands import Commands
from benchmarks.images.image import Image
from benchmarks.subjects.base import Subject

_WHITEOUT = ".wh."


def whiteouts(layer: Path) -> list[str]:
    """Give the names that a layer's tar deletes from the layers below."""
    found = []
    with tarfile.open(layer) as archive:
        for entry in archive:
            parent, _, name = entry.name.rpartition("/")
            if name.startswith(_WHITEOUT):
                found.append(f"{parent}/{name.removeprefix(_WHITEOUT)}".lstrip("/"))
    return found


def unpack(commands: Commands, layer: Path, target: Path) -> None:
    """Unpack one layer with tar; what it deletes is left out."""
    options = ["--numeric-owner", "--xattrs", f"--exclude={_WHITEOUT}*"]
    commands.run(["tar", *options, "-xpf", layer, "-C", target])


def unpack_merged(commands: Commands, image: Image, target: Path) -> None:
    """Unpack an image's layers over one another, unless the directory is there."""
    if target.exists():
        return
    target.mkdir()
    for layer in image.layers:
        for name in whiteouts(layer):
            commands.run(["rm", "-rf", target / name])
        unpack(commands, layer, target)


class LayerDirectories(Subject, abc.ABC):
    """A union of one directory a layer. Layers are unpacked once for each file system."""

    def fill(self, image: Image) -> None:
        """Unpack every layer into a directory of its own."""
        top = self.place / image.name
        if top.exists():
            return
        top.mkdir()
        for place, layer in enumerate(image.layers):
            target = top / str(place)
            target.mkdir()
            unpack(self.commands, layer, target)
            for name in whiteouts(layer):
                self.hide(target, name)

    def hide(self, layer: Path, name: str) -> None:
        """Put a whiteout into a layer, as overlayfs has them."""
        os.mknod(layer / name, 0o020600, 0)

    def prepare(self, key: str, image: Image) -> None:
        """Make the writable directory."""
        top = self._place(key)
        for name in ("upper", "work", "mounted"):
            (top / name).mkdir(parents=True)
        (top / "image").write_text(image.name)

    def mount(self, key: str) -> Path:
        """Mount the union."""
        top = self._place(key)
        layers = self.place / (top / "image").read_text()
        lower = [layers / str(place) for place in reversed(range(len(os.listdir(layers))))]
        self.attach(lower, top / "upper", top / "work", top / "mounted")
        return top / "mounted"

    @abc.abstractmethod
    def attach(self, lower: Sequence[Path], upper: Path, work: Path, target: Path) -> None:
        """Mount layers, the top one first, and a writable one on a directory."""

    def unmount(self, key: str) -> None:
        """Unmount the union."""
        self.commands.run(["umount", self._place(key) / "mounted"])

    def enter(self, key: str) -> Path:
        """There is one way to mount."""
        return self.mount(key)

    def leave(self, key: str) -> None:
        """There is one way to unmount."""
        self.unmount(key)

    def remove(self, key: str) -> None:
        """Delete the writable directory."""
        shutil.rmtree(self._place(key))

    def cycle(self, image: Image) -> None:
        """Prepare, mount, unmount and remove."""
        self.prepare("cycle", image)
        self.mount("cycle")
        self.unmount("cycle")
        self.remove("cycle")

    def _place(self, key: str) -> Path:
        return self.place / f"container-{key}"
