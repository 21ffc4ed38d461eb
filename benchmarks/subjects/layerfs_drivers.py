"""layerfs itself: one subject for each driver that an entry point names, by the command that users have."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.commands import CommandError, Commands
from benchmarks.images.image import TAG, Image
from benchmarks.subjects.base import Candidate, Subject, UnsupportedError
from layerfs import Store, plugins
from layerfs.errors import NotFoundError

_INSECURE = "--tls-verify=false"
_UNSUPPORTED = ("not supported", "unknown option", "is not a command")
_LAZY = "lazy"
_LAZY_DRIVERS = ("fuse",)
PREFIX = "layerfs-"
# What users type, if this Python has it; `-m` takes some milliseconds more.
_SCRIPT = Path(sys.executable).with_name("layerfs")
_COMMAND = [str(_SCRIPT)] if _SCRIPT.exists() else [sys.executable, "-m", "layerfs"]


class Layerfs(Subject):
    """A store of its own under one driver.

    What a workload measures is a command; what only gets ready for it goes through the library.
    """

    most = 10_000

    def __init__(self, place: Path, commands: Commands, store: Store) -> None:
        super().__init__(place, commands)
        self.store = store
        self._tops: dict[str, str] = {}

    def call(self, *words: str | Path, stdout: Path | None = None) -> bytes:
        """Run one layerfs command on the store."""
        store: list[str | Path] = ["--root", self.store.root, "--driver", self.store.driver.name]
        return self.commands.run([*_COMMAND, *store, *words], stdout=stdout)

    # -- trees

    def fill(self, image: Image) -> None:
        """Load the image unless it is here."""
        if not self._has(image.reference):
            self.store.load(image.docker_archive)

    def prepare(self, key: str, image: Image) -> None:
        """Create a container."""
        self.store.containers.create(image.reference, name=key)

    def mount(self, key: str) -> Path:
        """Mount a container's tree."""
        target = self._target(key)
        self.call("mount", key, target)
        return target

    def unmount(self, key: str) -> None:
        """Unmount it."""
        self.call("umount", self._target(key))

    def enter(self, key: str) -> Path:
        """Mount it through the library: its server would be larger, begun by a larger process."""
        target = self._target(key)
        self.store.containers.get(key).mount(target)
        return target

    def leave(self, key: str) -> None:
        """Unmount it through the library."""
        self.store.containers.get(key).unmount()

    def _target(self, key: str) -> Path:
        target = self.place / f"mounted-{key}"
        target.mkdir(exist_ok=True)
        return target

    def remove(self, key: str) -> None:
        """Remove the container."""
        self.store.containers.remove(key)

    def make_layer(self, key: str, image: Image) -> None:
        """Prepare a layer through the library, without a container."""
        self.store.layers.prepare(key, self.store.images.get(image.reference).chain_ids[-1])

    def delete_layer(self, key: str) -> None:
        """Remove it."""
        self.store.layers.remove(key)

    def cycle(self, image: Image) -> None:
        """Prepare, mount, unmount and remove a layer through the library."""
        # The name of an image's topmost layer never changes.
        if image.reference not in self._tops:
            self._tops[image.reference] = self.store.images.get(image.reference).chain_ids[-1]
        self.store.layers.prepare("cycle", self._tops[image.reference])
        with self.store.layers.mounted("cycle"):
            pass
        self.delete_layer("cycle")

    # -- images

    def holds(self, image: Image) -> bool:
        """Say whether the image is here."""
        return self._has(image.reference)

    def have(self, image: Image) -> None:
        """Load the image unless it is here."""
        self.fill(image)

    def have_packed(self, image: Image) -> None:
        """Pull the gzip layout unless that is here."""
        if not self._has(_packed(image)):
            self.store.pull(f"oci:{image.layout('gzip')}:{TAG}", _packed(image))

    def forget_packed(self, image: Image) -> None:
        """Remove it, and what only it needs."""
        self.call("rmi", _packed(image))

    def pull_gzip(self, image: Image) -> None:
        """Pull the layout."""
        self.call("pull", "--quiet", f"oci:{image.layout('gzip')}:{TAG}", image.reference)

    def pull_zstd(self, image: Image) -> None:
        """Pull the layout."""
        self.call("pull", "--quiet", f"oci:{image.layout('zstd')}:{TAG}", image.reference)

    def forget(self, image: Image) -> None:
        """Remove the image, and its layers and blobs with it."""
        if self._has(image.reference):
            self.call("rmi", image.reference)

    def images(self) -> None:
        """List the images."""
        self.call("images")

    def import_many(self, archives: Sequence[Path]) -> None:
        """Import each archive through the library."""
        for number, archive in enumerate(archives):
            self.store.import_tree(archive, f"many:{number}")

    def collect(self) -> None:
        """Look for everything that nothing needs, however young."""
        self.call("gc", "--grace", "0")

    def save(self, image: Image, target: Path) -> None:
        """Save the image."""
        self.call("save", "--quiet", "-o", target, image.reference)

    def push(self, image: Image, target: Path) -> None:
        """Push the image that was pulled."""
        self.call("push", "--quiet", _packed(image), f"oci:{target}:{TAG}")

    # -- registries

    def get_rid(self, image: Image) -> None:
        """Remove the image under all its names."""
        self.forget(image)
        if self._has(_packed(image)):
            self.forget_packed(image)

    def fetch(self, reference: str) -> None:
        """Pull an image from a registry."""
        self._call_registry("pull", "--quiet", _INSECURE, f"docker://{reference}", reference)

    def drop(self, reference: str) -> None:
        """Remove it."""
        if self._has(reference):
            self.call("rmi", reference)

    def copy_out(self, reference: str, target: Path) -> None:
        """Copy the image of a registry into a layout, without the store."""
        self._call_registry("copy", "--quiet", _INSECURE, f"docker://{reference}", f"oci:{target}:{TAG}")

    def name_for(self, image: Image, reference: str) -> None:
        """There is nothing to do: a push names its target."""

    def unname(self, reference: str) -> None:
        """There is nothing to take back."""

    def pack(self, image: Image, reference: str) -> None:
        """Push the image of the archive, packed by gzip."""
        words = ("--quiet", _INSECURE, "--compression", "gzip")
        self._call_registry("push", *words, image.reference, f"docker://{reference}")

    def send(self, image: Image, reference: str) -> None:
        """Push the image that was pulled."""
        self._call_registry("push", "--quiet", _INSECURE, _packed(image), f"docker://{reference}")

    def _call_registry(self, *words: str | Path) -> None:
        try:
            self.call(*words)
        except CommandError as error:
            # Older versions, and drivers that cannot, say so; all else is a failure.
            if any(text in str(error) for text in _UNSUPPORTED):
                said = str(error).splitlines()[0].rpartition("layerfs: ")[2]
                raise UnsupportedError(said) from error
            raise

    # -- containers

    def run(self, image: Image, command: Sequence[str]) -> None:
        """Run a command."""
        self.call("run", "--rm", image.reference, *command)

    def create(self, name: str, image: Image) -> None:
        """Create a container."""
        self.call("create", "--name", name, image.reference)

    def create_many(self, names: Sequence[str], image: Image) -> None:
        """Create containers through the library."""
        for name in names:
            self.store.containers.create(image.reference, name=name)

    def containers(self) -> None:
        """List all containers."""
        self.call("ps", "-a")

    def change(self, name: str, image: Image, script: str) -> None:
        """Run a script in a container that stays."""
        self.call("run", "--name", name, image.reference, "sh", "-c", script)

    def diff(self, name: str) -> None:
        """List what has changed."""
        self.call("diff", name)

    def commit(self, name: str, image: str) -> None:
        """Commit a container, its layer packed as it is by default."""
        self.call("commit", "--quiet", name, image)

    def export(self, name: str, target: Path) -> None:
        """Export a container."""
        self.call("export", "-o", target, name)

    def delete(self, name: str) -> None:
        """Remove a container."""
        self.call("rm", name)

    def untag(self, image: str) -> None:
        """Remove an image."""
        self.call("rmi", image)

    def version(self) -> None:
        """Print the version."""
        self.commands.run([*_COMMAND, "--version"])

    def load(self, image: Image) -> None:
        """Load a docker-archive."""
        self.call("load", "--quiet", "-i", image.docker_archive)

    def _has(self, name: str) -> bool:
        try:
            self.store.images.get(name)
        except NotFoundError:
            return False
        return True


def _packed(image: Image) -> str:
    return f"localhost/packed-{image.name}:{TAG}"


class LazyLayerfs(Layerfs):
    """A store under a driver that can mount what is not there yet."""

    def mount_lazily(self, reference: str) -> Path:
        """Mount an image of a registry; files are fetched when they are read."""
        target = self._target(_LAZY)
        self._call_registry("mount", "--lazy", _INSECURE, "--name", _LAZY, f"docker://{reference}", target)
        return target

    def unmount_lazily(self) -> None:
        """Unmount it and have all that was fetched deleted."""
        with contextlib.suppress(CommandError):
            self.call("umount", self._target(_LAZY))
            self.call("rm", _LAZY)
        self.call("gc", "--grace", "0")


@dataclasses.dataclass(frozen=True, slots=True)
class _Opening:
    driver: str

    @contextlib.contextmanager
    def __call__(self, place: Path, commands: Commands) -> Iterator[Subject]:
        with Store.open(place / "store", driver=self.driver) as store:
            kind = LazyLayerfs if self.driver in _LAZY_DRIVERS else Layerfs
            yield kind(place, commands, store)


def candidates(root: Path) -> list[Candidate]:
    """Give one subject for each installed driver, best first; `root` is where the drivers are tried."""
    reason = "needs root" if os.geteuid() else ""
    found = plugins.explain(root)
    names = [PREFIX + each.name for each in found]
    return [
        Candidate(name, reason or each.reason, _Opening(each.name), names[0] if name != names[0] else "")
        for name, each in zip(names, found, strict=True)
    ]
