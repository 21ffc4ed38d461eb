"""The store: opens a root, holds the rest, and carries out what users ask for."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final, Literal

from layerfs import root as root_directory
from layerfs.assembly import Assembly
from layerfs.blobs import Blobs
from layerfs.database import Database, Durability
from layerfs.errors import (
    ExistsError,
    InvalidError,
    LayerfsError,
    NotFoundError,
    UnsupportedError,
)
from layerfs.images import Image, Images, familiar, full_name
from layerfs.leases import Lease
from layerfs.naming import names_here, names_there
from layerfs.progress import Progress, Silent
from layerfs.tree.budget import DEFAULT_BUDGET, Budget
from layerfs.value import frozen, replace

if TYPE_CHECKING:
    from layerfs.check.checking import Check
    from layerfs.check.findings import Findings
    from layerfs.check.refetching import Refetching
    from layerfs.containers import Container, Containers
    from layerfs.converting import Converted, Converting
    from layerfs.driver import Bodies, Driver
    from layerfs.garbage import Garbage, Report
    from layerfs.indexes import Indexes
    from layerfs.layers import Layers
    from layerfs.oci.descriptor import Descriptor
    from layerfs.oci.platform import Platform
    from layerfs.outside import Outside
    from layerfs.reading import OpenImage
    from layerfs.rebuilding import Restored
    from layerfs.registry.settings import Options
    from layerfs.store_ends import StoreSink, StoreSource
    from layerfs.transports.rewriting import Rewriting
    from layerfs.usage import DiskUsage

_LAZY_DRIVER: Final = "fuse"
# Whose mounts an ordinary user sees outside of his user namespace.
_SEEN_DRIVER: Final = "fuse"


@frozen
class Info:
    """What a store is and holds.

    `file_system` is what it lies on, ``ext4 on /dev/sda1``, which has so many bytes, and so many `free` ones.
    `drivers` are those that have layers.
    """

    root: Path
    driver: str
    durability: str
    format_version: int
    images: int
    containers: int
    running: int
    layers: int
    file_system: str
    size: int
    free: int
    drivers: tuple[str, ...]


class Store:
    """Images, containers and their layers below one directory; a context manager.

    Several processes may have the same root open, and several threads may share one object. Nothing runs
    in the background, and nothing stays in memory: what one process does the next one sees.

        with Store.open() as store:
            image = store.pull("oci:./debian")
            container = store.mount(image.names[0], Path("/mnt"))
    """

    def __init__(
        self,
        root: Path,
        database: Database,
        *,
        driver: str | None,
        durability: Durability,
        budget: Budget,
        warn: Callable[[str], None],
        outside: Outside | None,
    ) -> None:
        """Use `Store.open`."""
        self.root = root
        self._outside = outside
        self.durability: Durability = durability
        self.blobs = Blobs(root, durability=durability)
        self._database = database
        self._budget = budget
        self._warn = warn
        self._layers: dict[str, Layers] = {}
        self._asked_driver = driver
        # How those are spoken with from which the files of lazy layers come.
        self._registry: Callable[[], Options] | None = None
        # What was put into a new database when the store was opened.
        self._restored: list[Restored] = []
        # Why the driver that was asked for does not work here; without it what there is can be looked at.
        self._unusable: UnsupportedError | None = None
        # Why files of some owners cannot be dealt with.
        self._lost_ids: str | None = None
        self._driver_name = self._choose_driver(driver)
        self._assembly = Assembly(database, self.blobs, self.layers_of)
        self.blobs.assembles = self._assembly
        self.images = Images(
            database, self.blobs, driver=self._driver_name, reclaim=self._reclaim, complete=self._complete
        )

    # What many a command does not need is imported and made when it is first asked for.

    @functools.cached_property
    def driver(self) -> Driver:
        """The driver that was chosen when the store was opened."""
        return self.layers.driver

    @functools.cached_property
    def layers(self) -> Layers:
        """The layers of that driver."""
        return self.layers_of(self._driver_name)

    @functools.cached_property
    def _indexes(self) -> Indexes:
        from layerfs.indexes import Indexes

        return Indexes(self._database, self.blobs)

    @functools.cached_property
    def containers(self) -> Containers:
        """The containers of every driver."""
        from layerfs.containers import Containers

        return Containers(
            self._database, self.blobs, self.images, logs=self.root / "logs", driver=self._driver_name,
            layers_of=self.layers_of, warn=self._warn,
        )  # fmt: skip

    @classmethod
    def open(
        cls,
        root: Path | str | None = None,
        *,
        driver: str | None = None,
        durability: Durability = "commit",
        budget: Budget = DEFAULT_BUDGET,
        warn: Callable[[str], None] | None = None,
        outside: Outside | None = None,
        registry: Callable[[], Options] | None = None,
        squash_owners: bool = False,
        rebuild: bool = False,
    ) -> Store:
        """Open the store at a directory, which is made when it is missing or empty.

        What a crash left behind, half-made layers and mounts of dead processes, is cleared away.

        Args:
            root: /var/lib/layerfs for root and ~/.local/share/layerfs for others when None.
            driver: the name of the driver to use this time; the store remembers its first choice else.
            durability: what is on disk when a call returns: "commit" (whatever was committed), "full" (every
                change), or "none" (whenever the kernel likes; for throw-away stores).
            budget: what a stranger's layer may ask for.
            warn: told, one sentence each, what was odd but has a defined result.
            outside: where `mount` mounts, for a process that entered a user namespace (see `runtime.userns`);
                None: in the mount namespace of this process.
            registry: says how registries are spoken with for files of lazy layers; asked when one is mounted.
            squash_owners: whenever a layer is unpacked from now on, give its files whose owners have no id in
                the user namespace to root, instead of refusing it; the store remembers that.
            rebuild: make the database anew, if it is lost or damaged, from what lies beside it; `check` tells
                then what came back. The old one goes to ROOT/quarantine.

        Raises:
            InUseError: the database is to be made anew, and a process has it open.
            StoreError: the directory holds something else, or a store of another format.
            UnsupportedError: no driver, or not that one, works here; from a store that has something only
                who needs the driver hears that.
        """
        if durability not in ("none", "commit", "full"):
            raise InvalidError(f"{durability!r} is not a durability", hint="'none', 'commit' or 'full'")
        place = Path(os.path.abspath(root)) if root is not None else root_directory.default()
        root_directory.check_format(place, mend=rebuild)
        renewed = None
        if rebuild:
            from layerfs import rebuilding

            renewed = rebuilding.renew_database(place)
        database = Database(place / "layerfs.db", durability=durability)
        try:
            store = cls(
                place, database, driver=driver, durability=durability, budget=budget,
                warn=warn or (lambda message: None), outside=outside,
            )  # fmt: skip
            store._registry = registry
            if renewed is not None:
                store._restore(renewed.what, empty=renewed.empty)
            store._compare_ids()
            if squash_owners:
                from layerfs.layers import SQUASH_OWNERS

                database.set(SQUASH_OWNERS, "1")
            store._recover()
        except BaseException:
            database.close()
            raise
        return store

    def close(self) -> None:
        """Close the store; closing twice does nothing, and mounts stay."""
        self._database.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def layers_of(self, driver: str) -> Layers:
        """Give the layers of a driver by its name: containers keep the driver that they were made with."""
        from layerfs import plugins

        found = self._layers.get(driver)
        if self._unusable is not None and driver == self._driver_name:
            raise self._unusable
        return found or self._add_layers(plugins.load(driver, self.root / "drivers"))

    def all_layers(self) -> list[Layers]:
        """Give the layers of every driver that was ever used here and is installed."""
        names = {name for (name,) in self._database.rows("SELECT DISTINCT driver FROM layers")}
        # Somebody may be trying a driver, in a directory whose name begins with a dot.
        names.update(name for name in os.listdir(self.root / "drivers") if not name.startswith("."))
        found = []
        for name in sorted(names):
            try:
                found.append(self.layers_of(name))
            except (NotFoundError, UnsupportedError) as error:
                self._warn(f"the layers of driver {name} are left alone: {error}")
        return found

    # -- images in and out

    def pull(
        self,
        source: str,
        name: str | None = None,
        *,
        platform: Platform | str | None = None,
        all_platforms: bool = False,
        options: Options | None = None,
        progress: Progress | None = None,
    ) -> Image:
        """Copy an image into the store and unpack it.

        Args:
            source: as skopeo writes it: ``docker://HOST/REPOSITORY:TAG``, ``oci:DIR[:TAG]``,
                ``oci-archive:FILE[:TAG]`` or ``docker-archive:FILE[:NAME]``; no prefix means ``docker://``.
            name: what it is called here; when None what the source calls it, or else as `source` looks.
            platform: which image of several, as text ``OS/ARCHITECTURE[/VARIANT]``; this machine's when None.
            all_platforms: keep those of the other platforms, too, and the index that names them all, for
                `push`; they are not unpacked.
            options: how a registry is spoken with.
            progress: told how it goes.

        Raises:
            NotFoundError: there is no such image.
            InvalidError: something in it is malformed.
            VerificationError: a part of it is not what its digest promises.
            TransportError: the registry cannot be reached, or refuses.
        """
        from layerfs import transports
        from layerfs.oci.platform import Platform
        from layerfs.transports.copying import copy_index

        platform = Platform.given(platform)
        if name is not None:
            full_name(name)
        place = transports.parse(source)
        with (
            place.named_in_errors(),
            closing(
                place.source(spool=self._spool, budget=self._budget, warn=self._warn, options=options)
            ) as origin,
            closing(self._sink(progress or Silent())) as sink,
        ):
            names = [name] if name is not None else names_here(origin, place)
            transports.copy(origin, sink, image=place.name, names=names, platform=platform, progress=progress)
            if all_platforms:
                copy_index(origin, sink, image=place.name, names=names, progress=progress)
            sink.commit()
            self._compare_platforms(sink.stored[0], platform)
            return sink.stored[0]

    def push(
        self,
        image: str,
        destination: str,
        *,
        all_platforms: bool = False,
        rewriting: Rewriting | None = None,
        options: Options | None = None,
        progress: Progress | None = None,
    ) -> Descriptor:
        """Copy an image out of the store: its blobs and its manifest exactly as they came in.

        Args:
            image: what `Images.get` takes.
            destination: as for `pull`; without a tag or name there the image keeps the name that it is
                called by here; called by its id, its only one.
            all_platforms: send the index that was kept with this name, and all that it names.
            rewriting: what changes on the way; nothing when None.
            options: how a registry is spoken with.
            progress: told how it goes.

        Raises:
            NotFoundError: there is no such image.
            ExistsError: the destination is an archive that there is already.
            TransportError: the destination is something else.
        """
        from layerfs import transports
        from layerfs.transports.copying import copy_image

        place = transports.parse(destination)
        found = self.images.get(image)
        if place.name is not None:
            names = [place.name]
        else:
            names = names_there(found, self.images.name_of(image), place.transport)
        with (
            closing(self._source()) as origin,
            closing(place.sink(options=options, warn=self._warn)) as sink,
        ):
            wanted = str(found.digest)
            if all_platforms:
                wanted = self.images.name_of(image) or wanted
                if self._indexes.of(wanted) is None:
                    self._warn(f"{image} was kept for one platform only, which is what goes")
            elif place.transport != "docker-archive":
                index = self._indexes.of(self.images.name_of(image) or "")
                if index is not None and len(index.manifests) > 1:
                    self._warn(
                        f"{image} goes as one of the {len(index.manifests)} images of its index;"
                        " --all-platforms sends them all"
                    )
            descriptor = copy_image(
                origin, sink, image=wanted, names=names, every=all_platforms, rewriting=rewriting,
                progress=progress,
            )  # fmt: skip
            sink.commit()
            return descriptor

    def load(self, file: Path | str | BinaryIO, *, progress: Progress | None = None) -> list[Image]:
        """Take in every image of an archive of docker save (of any age) or of an OCI layout; unpack them.

        Args:
            file: a path, or an open file or pipe; plain or compressed.
            progress: told how it goes.

        Returns:
            The images, of their names those that the archive gave them.

        Raises:
            ArchiveError: it is neither.
            InvalidError, VerificationError: it is malformed.
        """
        from layerfs import transports
        from layerfs.transports.docker_archive import open_any

        place = Path(file) if isinstance(file, str) else file
        with (
            closing(open_any(place, spool=self._spool, budget=self._budget, warn=self._warn)) as origin,
            closing(self._sink(progress or Silent())) as sink,
        ):
            given: set[str] = set()
            for available in origin.images():
                transports.copy(origin, sink, image=available, names=available.references, progress=progress)
                given.update(map(familiar, available.references))
            sink.commit()
            return [
                replace(image, names=tuple(name for name in image.names if name in given))
                for image in sink.stored
            ]

    def save(
        self,
        images: Sequence[str],
        file: Path | str | BinaryIO,
        *,
        format: Literal["docker", "oci"] = "docker",
        progress: Progress | None = None,
    ) -> None:
        """Write images into one archive: their blobs and manifests exactly as they came in.

        Args:
            images: names, which are kept in the archive, or ids, which give images without a name.
            file: a path, replaced when all is written, or an open file or pipe.
            format: "docker", which docker load reads too (and an OCI layout all the same), or "oci".
            progress: told how it goes.

        Raises:
            NotFoundError: there is no such image.
        """
        from layerfs import transports
        from layerfs.transports import docker_archive, oci_archive

        if format not in ("docker", "oci"):
            raise InvalidError(f"{format!r} is no format of archives", hint="'docker' or 'oci'")
        wanted: dict[str, list[str]] = {}
        for ref in images:
            found = self.images.get(ref)
            names = wanted.setdefault(str(found.digest), [])
            name = self.images.name_of(ref)
            names += [] if name is None else [name]
        target = Path(file) if isinstance(file, str) else file
        opened = docker_archive.open_sink(target) if format == "docker" else oci_archive.open_sink(target)
        with closing(self._source()) as origin, closing(opened) as sink:
            for digest, names in wanted.items():
                transports.copy(origin, sink, image=digest, names=names, progress=progress)
            sink.commit()

    def import_tree(
        self,
        source: Path | str | BinaryIO,
        name: str,
        *,
        changes: Sequence[str] = (),
        message: str = "",
        progress: Progress | None = None,
    ) -> Image:
        """Make an image of one layer from a plain root file system.

        Args:
            source: a directory, a tar file, plain or compressed, or an open one.
            name: the image's name.
            changes: Dockerfile instructions that set its config, such as ``CMD ["sh"]``.
            message: kept in its history.
            progress: told how it goes.

        Raises:
            LayerError: the tar stream cannot be accepted.
            InvalidError: the name is none, or an instruction cannot be done.
        """
        from layerfs import committing

        full_name(name)
        committing.check_instructions(changes)
        shown = progress or Silent()
        with Lease(self._database) as lease:
            if isinstance(source, str | Path):
                if os.path.isdir(source):
                    layer = committing.layer_of_directory(
                        self.blobs, lease, Path(source), warn=self._warn, progress=shown
                    )
                else:
                    with open(source, "rb", buffering=0) as file:
                        layer = committing.layer_of_stream(self.blobs, lease, file, progress=shown)
            else:
                layer = committing.layer_of_stream(self.blobs, lease, source, progress=shown)
            image = committing.build_image(
                self.images, self.blobs, lease, layer, base=None, author="", message=message,
                created_by="layerfs import", changes=changes,
                unpack=functools.partial(self.containers.unpack, progress=shown),
            )  # fmt: skip
            # The name comes last, so that it never stands for a tree that cannot be unpacked.
            return self.images.tag(str(image.digest), name)

    # -- reading images

    def has_image(self, what: str) -> bool:
        """Say whether `Images.get` finds an image under this name or id."""
        try:
            self.images.get(what)
        except (NotFoundError, InvalidError):
            return False
        return True

    def read_image(
        self, image: str, *, platform: Platform | str | None = None, options: Options | None = None
    ) -> OpenImage:
        """Open an image for reading its files, without unpacking it; the caller closes it.

        Args:
            image: what `Images.get` takes, or a place as `pull` takes them, with its transport:
                ``oci:DIR[:TAG]``, ``docker://HOST/REPOSITORY[:TAG]``, ...
            platform: which image of several that a place has; this machine's when None.
            options: how a registry is spoken with.

        Raises:
            NotFoundError: there is no such image.
            LayerfsError: it cannot be read.
        """
        from layerfs import reading, transports
        from layerfs.oci.platform import Platform
        from layerfs.seekable.tables import Tables

        platform = Platform.given(platform)
        if transports.has_transport(image) and not self.has_image(image):
            return reading.open_place(
                transports.parse(image), platform=platform, options=options, spool=self._spool,
                budget=self._budget, warn=self._warn,
            )  # fmt: skip
        tables = Tables(self._database, self.blobs, budget=self._budget, warn=self._warn)
        return reading.open_stored(
            self.images.get(image), self.blobs, tables, self.all_layers, budget=self._budget, warn=self._warn
        )

    # -- mounts

    def mount(
        self,
        what: str,
        target: Path | str,
        *,
        read_only: bool = False,
        name: str | None = None,
        options: Sequence[str] = (),
        lazy: bool = False,
        platform: Platform | str | None = None,
        registry: Options | None = None,
    ) -> Container:
        """Mount a container, or an image with a fresh writable layer, on a directory until `unmount`.

        Outside of an ordinary user's namespace an image is mounted with the driver fuse, unless the store was
        opened with another.

        Args:
            what: a container, or else an image, as the user calls it.
            target: an existing directory.
            read_only: refuse writes.
            name: of the container that is made for an image.
            options: as mount(8) takes them after -o; those of the driver are its `mount_options`.
            lazy: let the files of an image come when they are read. It may be one that is not here, called as
                `pull` takes it; the driver is fuse, unless the store was opened with another.
            platform: which image of several; this machine's when None.
            registry: how a registry is spoken with, as long as the mount lasts.

        Raises:
            NotFoundError: there is neither such a container nor such an image.
            InvalidError: the mount would hide the store.
            InUseError: the container is mounted already.
            OptionError: the driver has no such option.
        """
        if registry is not None:
            self._registry = lambda: registry
        target = Path(target)
        # Before anything is made.
        self._any_layers().check_target(target)
        container = self.containers.find(what)
        if container is not None and name is None:
            if self._asked_driver not in (None, container.driver):
                self._warn(
                    f"container {container.name} was made with the driver {container.driver} and keeps it;"
                    " `layerfs convert` moves it"
                )
            container.mount(target, read_only=read_only, options=options)
            return container
        if container is not None and name is not None and not self.has_image(what):
            raise ExistsError(f"container {container.name} has a name already")
        try:
            made = (
                self._create_lazy(what, name=name, platform=platform)
                if lazy
                else self.containers.create(what, name=name, driver=self._seen_driver())
            )
        except NotFoundError as error:
            if self.has_image(what):
                raise
            from layerfs import similar

            names = [one.name for one in self.containers.list()]
            raise NotFoundError(
                f"there is no container and no image {what}", hint=similar.meant(what, names) or error.hint
            ) from error
        try:
            made.mount(target, read_only=read_only, options=options)
        except BaseException:
            self.containers.remove(made.id)
            raise
        return made

    def unmount(self, what: str | Path) -> None:
        """Unmount a directory, or a container by its name or id wherever it is mounted.

        Raises:
            NotFoundError: nothing of this store is mounted there.
            InUseError: files below it are open.
        """
        try:
            container = self.containers.get(str(what))
        except (NotFoundError, InvalidError):
            container = None
        if container is not None and (container.mounts() or not os.path.lexists(what)):
            container.unmount()
        else:
            self._any_layers().unmount(Path(what))

    # -- from one driver to another

    def convert(self, what: str, to: str, *, progress: Progress | None = None) -> Converted:
        """Move a container, or an image's unpacked layers, to another driver, in place.

        The new copy is compared with the old one before that goes: trees and lists of changes of what a
        container wrote, data and tables of contents of images' layers. Between drivers of one format
        directories are renamed instead. A kill leaves either the old or the new, whole. Layers of an image
        that other containers of the old driver stand on stay there, too. Sockets do not go along.

        Args:
            what: a container, or else an image, as the user calls it.
            to: the name of a driver.
            progress: told how it goes.

        Raises:
            NotFoundError: there is neither such a container nor such an image, or no such driver.
            InUseError: the container is running or mounted.
            UnsupportedError: the driver does not work here.
            LayerError: a file of the container cannot be in a layer.
            VerificationError: the new copy is not what the old one is; that stays.
        """
        converting = self._converting(to, progress)
        container = self.containers.find(what)
        if container is not None:
            return converting.container(container, self.layers_of(container.driver))
        try:
            image = self.images.get(what)
        except NotFoundError as error:
            raise NotFoundError(f"there is no container and no image {what}", hint=error.hint) from error
        self.images.require_layers(image)
        return converting.image(image, what, self.all_layers())

    def convert_all(
        self,
        to: str,
        *,
        failed: Callable[[str, LayerfsError], None],
        progress: Progress | None = None,
    ) -> list[Converted]:
        """Convert every container and image, as `convert` does, and use the driver from now on.

        Args:
            to: the name of a driver.
            failed: told what cannot be converted, and why; the store keeps its driver then.
            progress: told how it goes.
        """
        done = []
        failures = 0
        boxes = [one.name for one in self.containers.list()]
        images = [one.names[0] if one.names else str(one.digest) for one in self.images.list()]
        for what in boxes + images:
            try:
                done.append(self.convert(what, to, progress=progress))
            except LayerfsError as error:
                failures += 1
                failed(what, error)
        if not failures:
            self._database.set("driver", to)
        return done

    def _converting(self, to: str, progress: Progress | None) -> Converting:
        from layerfs import plugins
        from layerfs.converting import Converting

        target = self.layers_of(to)
        plugins.find(to).load().check(target.driver.root)
        return Converting(
            self.root, self._database, self.blobs, target, warn=self._warn, progress=progress or Silent()
        )

    # -- housekeeping

    def collect(self, *, dry_run: bool = False, grace: float | None = None) -> Report:
        """Remove what nothing needs; see `garbage`.

        Args:
            dry_run: only say what would go.
            grace: seconds for which new things are left alone; an hour when None.
        """
        from layerfs.garbage import GRACE_SECONDS

        self._take_over()
        return self._garbage().collect(dry_run=dry_run, grace=GRACE_SECONDS if grace is None else grace)

    def check(
        self,
        *,
        repair: bool = False,
        contents: bool = False,
        registry: Options | None = None,
        progress: Progress | None = None,
    ) -> Findings:
        """Look for damage.

        Args:
            repair: mend what can be mended, from the kept blobs; what is damaged goes to ROOT/quarantine.
            contents: read the data of every file and of every blob, not only what describes them.
            registry: get what is not here, in a repair, from the registries that images are named after,
                spoken with like this; None asks none.
            progress: told how it goes.

        Raises:
            UnsupportedError: an ordinary user lacks ids that he had, so that what is sound looks damaged.
        """
        from layerfs.check.refetching import Refetching

        if self._lost_ids is not None:
            raise UnsupportedError(
                f"nothing can be checked: {self._lost_ids}",
                hint="give the user the ranges of before in /etc/subuid and /etc/subgid, in the same order",
            )
        self._take_over()
        if registry is None or not repair:
            return self._check(repair=repair, contents=contents, progress=progress).run()
        with Refetching(self._database, self.blobs, registry, warn=self._warn) as refetching:
            return self._check(repair=True, contents=contents, progress=progress, refetching=refetching).run()

    def disk_usage(self) -> DiskUsage:
        """Say what images, containers and blobs occupy, and what could be had back."""
        from layerfs.usage import measure

        return measure(self.root, self._database, self.blobs, self.images, self.containers, self.all_layers)

    def info(self) -> Info:
        """Say what the store is and holds."""
        row = self._database.row(
            "SELECT (SELECT COUNT(*) FROM images), (SELECT COUNT(*) FROM containers),"
            " (SELECT COUNT(*) FROM containers WHERE status = 'running'),"
            " (SELECT COUNT(*) FROM layers WHERE state = 'committed')"
        )
        assert row is not None
        from layerfs import mounting

        space = os.statvfs(self.root)
        drivers = self._database.rows("SELECT DISTINCT driver FROM layers ORDER BY driver")
        images, containers, running, layers = row
        return Info(
            self.root, self._driver_name, self.durability, root_directory.FORMAT_VERSION, images, containers,
            running, layers, mounting.file_system_of(self.root), space.f_blocks * space.f_frsize,
            space.f_bavail * space.f_frsize, tuple(name for (name,) in drivers),
        )  # fmt: skip

    # -- inner parts

    def _choose_driver(self, name: str | None) -> str:
        drivers = self.root / "drivers"
        remembered = self._database.get("driver")
        wanted = name or remembered
        if wanted is not None and (drivers / wanted).is_dir():
            return wanted
        from layerfs import plugins

        try:
            driver = plugins.choose(drivers, wanted)
        except UnsupportedError as error:
            if wanted is None or remembered is None:
                raise
            self._unusable = error
            return wanted
        if remembered is None:
            self._database.set("driver", driver.name)
        return driver.name

    def _any_layers(self) -> Layers:
        """Give layers for what is the same with every driver, such as the ledger of mounts."""
        if self._unusable is None:
            return self.layers
        usable = self.all_layers()
        return usable[0] if usable else self.layers

    def _add_layers(self, driver: Driver) -> Layers:
        from layerfs.driver import Lazy
        from layerfs.layers import Layers

        layers = Layers(
            self.root, self._database, self.blobs, driver, durability=self.durability, budget=self._budget,
            warn=self._warn, outside=self._outside,
        )  # fmt: skip
        if isinstance(driver, Lazy):
            driver.fetching = functools.partial(self._bodies, layers)
        self._layers[driver.name] = layers
        return layers

    def _create_lazy(self, what: str, *, name: str | None, platform: Platform | str | None) -> Container:
        """Make a container on an image of which no more is here than is needed to show its tree."""
        from layerfs.lazy import preparing
        from layerfs.oci.platform import Platform
        from layerfs.seekable.tables import Tables

        tables = Tables(self._database, self.blobs, budget=self._budget, warn=self._warn)
        layers = self.layers_of(self._asked_driver or _LAZY_DRIVER)
        with Lease(self._database) as lease:
            prepared = preparing.prepare(
                what, layers=layers, images=self.images, lease=lease, tables=tables, spool=self._spool,
                is_stored=self.has_image(what), platform=Platform.given(platform),
                options=self._registry_options(), warn=self._warn,
            )  # fmt: skip
            self._compare_platforms(prepared.image, Platform.given(platform))
            called = what.removeprefix("docker://")
            known = self.images.name_of(called) is not None
            if not known or self.images.get(called).digest != prepared.image.digest:
                called = str(prepared.image.digest)
            return self.containers.create(called, name=name, on=(layers.driver.name, prepared.top))

    def _compare_platforms(self, image: Image, wanted: Platform | None) -> None:
        """Warn of an image for another machine, which a source without a choice, or a wrong index, gives."""
        from layerfs.oci.platform import Platform

        found = image.config.platform
        if found.architecture and (wanted or Platform.host()).rank(found) is None:
            why = f"not for {wanted} as was asked" if wanted else f"and this machine is {Platform.host()}"
            name = image.names[0] if image.names else str(image.digest)
            self._warn(f"{name} is for {found}, {why}")

    def _seen_driver(self) -> str | None:
        """Name the driver for a new mount where an ordinary user would not see what our own one mounts."""
        from layerfs import plugins
        from layerfs.driver import Configures

        if self._outside is None or self._asked_driver is not None or isinstance(self.driver, Configures):
            return None
        # Its own words are better than what a mount would say.
        plugins.find(_SEEN_DRIVER).load().check(self.root / "drivers")
        return _SEEN_DRIVER

    def _take_over(self) -> None:
        """Note what processes have found out of lazy layers that have no database."""
        query = "SELECT DISTINCT driver FROM layers WHERE state = 'committed' AND toc IS NULL"
        for (driver,) in self._database.rows(query):
            from layerfs.lazy.finishing import take_over

            with contextlib.suppress(NotFoundError, UnsupportedError):
                take_over(self.layers_of(driver))

    def _registry_options(self) -> Options | None:
        return None if self._registry is None else self._registry()

    def _bodies(self, layers: Layers, lazy: Sequence[str]) -> Bodies:
        from layerfs.lazy import preparing

        return preparing.bodies(lazy, layers=layers, options=self._registry_options())

    def _source(self) -> StoreSource:
        from layerfs.store_ends import StoreSource

        return StoreSource(self._database, self.blobs, self.images, self._indexes)

    def _sink(self, progress: Progress) -> StoreSink:
        from layerfs.store_ends import StoreSink

        return StoreSink(
            self._database, self.blobs, self.images, self._indexes, self.containers, self.layers,
            progress=progress,
        )  # fmt: skip

    def _spool(self) -> BinaryIO:
        import tempfile

        return tempfile.TemporaryFile(dir=self.root / "tmp", buffering=0)

    def _check(
        self,
        *,
        repair: bool,
        contents: bool,
        progress: Progress | None = None,
        refetching: Refetching | None = None,
    ) -> Check:
        from layerfs.check.checking import Check

        return Check(
            self.root, self._database, self.blobs, self._assembly, all_layers=self.all_layers,
            held=self._held, repair=repair, contents=contents, refetching=refetching,
            restored=self._restored, progress=progress,
        )  # fmt: skip

    def _held(self, driver: str) -> set[str]:
        """Name the layers that a driver holds, even of one that cannot work here."""
        try:
            return set(self.layers_of(driver).driver.layers())
        except (NotFoundError, UnsupportedError):
            with contextlib.suppress(OSError, ValueError):
                return {name for name in os.listdir(self.root / "drivers" / driver) if name[0] != "."}
            return set()

    def _restore(self, what: str, *, empty: bool) -> None:
        """Fill a new database from what lies beside it."""
        from layerfs.rebuilding import Restored, Restoring, find_images

        self._restored.append(Restored("database", "layerfs.db", what))
        if empty:
            self._restored += Restoring(self._database, self.blobs, self._held, anew=True).run()
            self._restored += find_images(self._database, self.blobs, self.images)

    def _garbage(self) -> Garbage:
        from layerfs.garbage import Garbage

        return Garbage(self.root, self._database, self.blobs, all_layers=self.all_layers)

    def _reclaim(self, image: Image, wait: bool) -> list[str]:
        blobs = [image.digest, image.id, *(layer.digest for layer in image.manifest.layers)]
        from layerfs.lazy.origin import layer_names

        garbage = self._garbage()
        lazy = layer_names(image.manifest.layers, image.config.diff_ids)
        return garbage.reclaim(lazy, (), wait=wait) + garbage.reclaim(image.chain_ids, blobs, wait=wait)

    def _compare_ids(self) -> None:
        """See whether every id that an ordinary user's store was ever used with is still what it was."""
        if os.geteuid() != 0:
            return
        from layerfs import subids

        noted = self._database.get("ids")
        sound, now = subids.compare(noted)
        if not sound:
            self._lost_ids = (
                "the store was used with ids that this user namespace has not, or that are others now: what"
                " belongs to them is nobody's here"
            )
            self._warn(f"{self._lost_ids} (see /etc/subuid and /etc/subgid, and whether newuidmap works)")
        elif now is not None and now != noted:
            self._database.set("ids", now)

    def _recover(self) -> None:
        from layerfs.recovery import Recovery

        Recovery(
            self.root, self._database, layers_of=self.layers_of, all_layers=self.all_layers,
            any_layers=self._any_layers, containers=lambda: self.containers,
            check=lambda: self._check(repair=True, contents=True), warn=self._warn,
        ).run()  # fmt: skip

    def _complete(self, image: Image) -> None:
        """Pull what is not here of an image that was mounted lazily, from where its files come.

        Raises:
            NotFoundError: it cannot be had.
        """
        from layerfs import transports
        from layerfs.lazy.completing import places_of

        called = image.names[0] if image.names else str(image.digest)
        lacking = f"image {called} is not all here: it was mounted with --lazy"
        reason = ""
        for text in places_of(image, self.all_layers()):
            place = transports.parse(text)
            try:
                with (
                    closing(
                        place.source(
                            spool=self._spool, budget=self._budget, warn=self._warn,
                            options=self._registry_options(),
                        )
                    ) as origin,
                    closing(self._sink(Silent())) as sink,
                ):  # fmt: skip
                    if origin.manifest(place.name).descriptor.digest != image.digest:
                        reason = f" ({text} is another image by now)"
                        continue
                    self._warn(f"{lacking}; the rest comes from {text}")
                    transports.copy(origin, sink, image=place.name, names=())
                    sink.commit()
                    return
            except (LayerfsError, OSError) as error:
                reason = f" ({text}: {error})"
        raise NotFoundError(f"{lacking}{reason}", hint="pull the image first")
