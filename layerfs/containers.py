"""Containers: a writable layer on an image, with a name, settings, and the state of its process.

A container's layer has the container's id as its key. The process part is `layerfs.runtime`'s.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from layerfs import failpoints, liveness, names
from layerfs.blobs import Blobs
from layerfs.compression import Compression
from layerfs.database import Database, now_ns
from layerfs.errors import (
    ExistsError,
    InUseError,
    InvalidError,
    LayerfsError,
    NotFoundError,
    ProcessError,
)
from layerfs.images import Image, Images, familiar, full_name
from layerfs.layer_table import Step
from layerfs.leases import Lease
from layerfs.liveness import Owner
from layerfs.mount_options import MountOptions
from layerfs.progress import Progress, Silent
from layerfs.value import field, frozen, replace

if TYPE_CHECKING:
    from layerfs.layers import Layers
    from layerfs.ledger import Record
    from layerfs.oci.config import ImageConfig
    from layerfs.oci.manifest import Manifest
    from layerfs.runtime.process import ProcessSpec
    from layerfs.runtime.settings import RunSettings
    from layerfs.tree.change import Change, ChangeKind

CONTAINER_LABEL: Final = "layerfs.container"
_KILL_SECONDS: Final = 10.0
_NAME: Final = r"[a-zA-Z0-9][a-zA-Z0-9_.-]*"
_COLUMNS: Final = (
    "id, name, driver, image, image_name, settings, status, exit_code, created_ns, started_ns, finished_ns,"
    " pid, start, boot"
)

_INSERT: Final = (
    "INSERT INTO containers (id, driver, image, image_name, settings, created_ns, name, status)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, 'created')"
)


@frozen
class Container:
    """One container, as it was when it was asked for.

    `id` has 64 hexadecimal digits. `image` is the name by which the image was called, `image_digest` its
    manifest's digest. `status` is ``created``, ``running`` or ``exited``. Times are seconds since 1970.
    `pid` is the number of a running container's process.
    """

    id: str
    name: str
    image: str
    image_digest: str
    driver: str
    settings: RunSettings
    status: str
    exit_code: int | None
    created: float
    started: float | None
    finished: float | None
    pid: int | None
    _containers: Containers = field(repr=False, compare=False)

    def mount(self, target: Path | str, *, read_only: bool = False, options: Sequence[str] = ()) -> None:
        """Mount the tree on a directory, where it stays until `unmount`; see `Layers.mount`.

        Each of `options` is a word, or several with commas between them, as mount(8) takes them after -o.
        Raises InvalidError where the mount would hide the store, too.
        """
        target = Path(target)
        parsed = MountOptions.parse(options)
        layers = self._containers.layers_of(self.driver)
        layers.check_target(target)
        layers.mount(self.id, target, read_only=read_only, options=parsed)

    def unmount(self) -> None:
        """Take the tree away from wherever `mount` put it in this mount namespace.

        Raises:
            NotFoundError: it is mounted nowhere.
            InUseError: files below it are open, or it is mounted where we cannot unmount it.
        """
        layers = self._containers.layers_of(self.driver)
        targets = self.mounts()
        if not targets:
            for record in self._mount_records():
                if not record.held:
                    raise layers.ledger.refusal(f"container {self.name}", record)
            raise NotFoundError(f"container {self.name} is not mounted")
        for target in targets:
            layers.unmount(target)

    def mounts(self) -> list[Path]:
        """Give the directories of this mount namespace where the tree is mounted, none if it was removed."""
        ledger = self._containers.layers_of(self.driver).ledger
        return [
            Path(os.fsdecode(one.target))
            for one in self._mount_records()
            if one.target and not one.held and ledger.near(one)
        ]

    def private_mounts(self) -> list[tuple[Path, int]]:
        """Give where the tree is mounted in other mount namespaces, with a process that sees it there."""
        ledger = self._containers.layers_of(self.driver).ledger
        found = []
        for one in self._mount_records():
            if one.target and not one.held and not ledger.near(one):
                pid = ledger.witness(one)
                if pid is not None:
                    found.append((Path(os.fsdecode(one.target)), pid))
        return found

    def _mount_records(self) -> list[Record]:
        try:
            return self._containers.layers_of(self.driver).mounts(self.id)
        except NotFoundError:
            return []

    def dead_mounts(self) -> list[Path]:
        """Give those of `mounts` whose server was killed; of one that does not answer soon nobody can say."""
        layers = self._containers.layers_of(self.driver)
        return [target for target in self.mounts() if layers.is_dead(target)]

    def mounted(self, *, read_only: bool = False) -> contextlib.AbstractContextManager[Path]:
        """Mount the tree for the length of a block, which gets the directory; see `Layers.mounted`."""
        return self._containers.layers_of(self.driver).mounted(self.id, read_only=read_only)

    @property
    def log(self) -> Path:
        """The file with what its processes in the background wrote; see `runtime.log.read`."""
        return self._containers.logs / self.id

    def start(
        self,
        *,
        tty: bool | None = None,
        interactive: bool | None = None,
        on_start: Callable[[int], None] | None = None,
    ) -> int:
        """Run the container's process on the tree as it was left, wait for it, and give its exit status.

        The tree is mounted for the process alone. See `runtime.launch.run` for signals and terminals.

        Args:
            tty: in place of the container's own setting.
            interactive: in place of the container's own setting.
            on_start: called with the process's number once it runs.

        Raises:
            ProcessError: it could not be started.
            InUseError: the container is running, or mounted.
        """
        return self._containers.start(self, tty=tty, interactive=interactive, on_start=on_start)

    def execute(
        self,
        command: Sequence[str],
        *,
        env: Sequence[str] = (),
        working_dir: str | None = None,
        user: str | None = None,
        tty: bool = False,
        interactive: bool = False,
    ) -> int:
        """Run one more process in the running container, wait for it, and give its exit status.

        What is not given is as the container's own process has it. See `runtime.enter.enter`.

        Args:
            env: ``NAME=VALUE``, on top of the container's; a bare ``NAME`` takes one away.
            working_dir: the directory to start in, which must be there.
            user: as for `create`.

        Raises:
            InUseError: the container is not running.
            ProcessError: the process could not be started.
        """
        from layerfs.runtime import enter

        container, spec = self._containers.entrance(
            self.id, command, env=env, working_dir=working_dir, user=user, tty=tty, interactive=interactive
        )
        return enter.enter(container, spec)

    def stop(self, *, signal: int | None = None, seconds: float = 10.0) -> None:
        """Ask the container's process to end, wait, and kill it if it stays; one at rest is left alone.

        Args:
            signal: sent first; the image's StopSignal, or SIGTERM, when left out.
            seconds: how long it has, before SIGKILL.

        Raises:
            PermissionError: it is another user's.
        """
        self._containers.stop(self.id, signal=signal, seconds=seconds)

    def wait(self) -> int | None:
        """Wait until the container's process has ended, and give its exit status.

        None when there is none to be known: it never ran, or who waited for it was killed.

        Raises:
            NotFoundError: it was removed at its end.
        """
        return self._containers.wait(self.id)

    def changes(self) -> Iterator[Change]:
        """Give everything that a commit would carry, in the order of a walk; best at rest."""
        found = self._containers.layers_of(self.driver).changes(self.id)
        if self.status != "running":
            return found
        from layerfs.runtime.places import without_places

        return without_places(found)

    def diff(self) -> Iterator[tuple[ChangeKind, bytes]]:
        """Give what docker diff prints: A, C or D and an absolute path; the container should be at rest."""
        from layerfs.tree.diff import listing

        return listing(self.changes())

    def commit(
        self,
        name: str | None = None,
        *,
        author: str = "",
        message: str = "",
        changes: Sequence[str] = (),
        annotations: Mapping[str, str] | None = None,
        compression: Compression = Compression.NONE,
        progress: Progress | None = None,
    ) -> Image:
        """Make an image of the container's image and, as one layer more, its changes.

        A container without changes gives an image without a further layer, as with docker.

        Args:
            name: the new image's name, which moves here from the image that has it.
            author: who made it; kept in config and history.
            message: kept in the history.
            changes: Dockerfile instructions that change the config, such as ``CMD ["sh"]``.
            annotations: of the manifest, which is OCI's then.
            compression: of the new layer; one without is on the disk once (see `assembly`).
            progress: told how it goes.

        Raises:
            InvalidError: an instruction cannot be done, or the name is none.
            LayerError: a file cannot be stored in a layer, or changed while it was read.
        """
        return self._containers.commit(
            self, name, author=author, message=message, changes=changes,
            annotations=annotations or {}, compression=compression, progress=progress or Silent(),
        )  # fmt: skip

    def export(self, write: Callable[[bytes], object]) -> None:
        """Write the whole tree as one tar stream, piece by piece.

        Of a container that runs, what is mounted on its tree is left out: /proc, volumes.
        """
        from layerfs.tree.archive import write_layer
        from layerfs.tree.diff import changes_between

        with self._containers.layers_of(self.driver).opened(self.id) as root:
            write_layer(changes_between(None, root), write, warn=self._containers.warn)

    def copy_in(self, source: Path | str, target: bytes) -> None:
        """Copy a file or directory of the host into the tree; see `copying.copy_path`.

        Into an existing directory the copy gets its source's name; a source that ends in ``/.`` stands for
        a directory's content (a `Path` cannot end so: give text). No link inside the tree leads out of it.
        Files of the host whose owners have no id in this user namespace become root's.
        """
        from layerfs import copying
        from layerfs.tree.owners import Owners

        with _host() as host, self._containers.opened(self, read_only=False) as root:
            copying.copy_path(
                host, _absolute(source), root, target, warn=self._containers.warn, owners=Owners.here()
            )

    def copy_out(self, source: bytes, target: Path | str) -> None:
        """Copy a file or directory of the tree to the host; see `copy_in`."""
        from layerfs import copying

        with _host() as host, self._containers.opened(self, read_only=True) as root:
            copying.copy_path(root, source, host, _absolute(target), warn=self._containers.warn)


class Containers:
    """The containers of one store."""

    def __init__(
        self,
        database: Database,
        blobs: Blobs,
        images: Images,
        *,
        logs: Path,
        driver: str,
        layers_of: Callable[[str], Layers],
        warn: Callable[[str], None],
    ) -> None:
        """Args: `driver` is that of new containers; `layers_of` gives the layers of a driver by its name."""
        self.logs = logs
        self.layers_of = layers_of
        self.warn = warn
        self._database = database
        self._blobs = blobs
        self._images = images
        self._driver = driver

    def create(
        self,
        image: str,
        *,
        name: str | None = None,
        command: Sequence[str] | None = None,
        settings: RunSettings | None = None,
        driver: str | None = None,
        on: tuple[str, str | None] | None = None,
        progress: Progress | None = None,
    ) -> Container:
        """Make a container: a fresh writable layer on an image, which is unpacked first if it is not yet.

        Args:
            image: what `Images.get` takes.
            name: made up when None.
            command: in place of the image's own Cmd.
            settings: how its process is to run; `command` wins over the one in it.
            driver: in place of the store's.
            on: a driver, and the layer of it that shows the image's tree; found out when None.
            progress: told how unpacking goes.

        Raises:
            NotFoundError: there is no such image.
            ExistsError: another container has the name.
            InvalidError: this cannot be a name.
        """
        from layerfs.runtime.settings import RunSettings

        if name is not None and not re.fullmatch(_NAME, name):
            raise InvalidError(
                f"{name!r} cannot name a container", hint="letters, digits, and _ . - behind the first"
            )
        if name is not None and self._database.row("SELECT 1 FROM containers WHERE name = ?", name):
            raise _taken(name)
        settings = settings or RunSettings()
        if command is not None:
            settings = replace(settings, command=tuple(command))
        found = self._image(image)
        if on is None:
            driver = driver or self._driver
            try:
                on = driver, self.unpack(found.manifest, found.config, driver=driver, progress=progress)
            except NotFoundError:
                if not self._images.require_layers(found):
                    raise
                on = self._driver, self.unpack(found.manifest, found.config, progress=progress)
        driver, parent = on
        layers = self.layers_of(driver)
        container_id = os.urandom(32).hex()
        # Until the container is recorded, only the lease tells that its layer is needed.
        with Lease(self._database) as lease:
            layers.prepare(container_id, parent, labels={CONTAINER_LABEL: "1"}, lease=lease)
            try:
                failpoints.reach("container.prepared")
                self._insert(container_id, name, found, image, settings, driver)
            except BaseException:
                lease.__exit__()
                layers.remove(container_id)
                raise
            failpoints.reach("container.recorded")
        return self.get(container_id)

    def _image(self, called: str) -> Image:
        try:
            return self._images.get(called)
        except NotFoundError as error:
            hint = error.hint or ""
            with contextlib.suppress(InvalidError):
                full_name(called)
                between = " " if hint.endswith("?") else "; "
                hint = f"{hint}{between}`layerfs pull {called}` gets it from a registry"
            raise NotFoundError(str(error), hint=hint) from error

    def start(
        self,
        container: Container,
        *,
        tty: bool | None,
        interactive: bool | None,
        on_start: Callable[[int], None] | None,
    ) -> int:
        """Run a container's process; see `Container.start`."""
        from layerfs.runtime import launch, process

        if self.get(container.id).status == "running":
            raise InUseError(f"container {container.name} is running already")
        settings = container.settings
        if tty is not None:
            settings = replace(settings, tty=tty)
        if interactive is not None:
            settings = replace(settings, interactive=interactive)
        config = self._images.get(container.image_digest).config.config
        spec = process.resolve(config, settings, hostname=container.id[:12])

        def started(pid: int) -> None:
            failpoints.reach("run.started")
            self._started(container.id, pid)
            if on_start is not None:
                on_start(pid)

        layers = self.layers_of(container.driver)

        def dead() -> None:
            # With its last line: `run --rm` takes the log away with the container.
            logs = "".join(
                f"; its log {log} ends with: {log.read_text(errors='replace').strip().splitlines()[-1]}"
                for log in layers.logs(container.id)
            )
            self.warn(
                f"the process that served the files of container {container.name} ended before its own: data"
                f" that was on its way to them is lost{logs}"
            )

        left: list[str] = []
        try:
            with layers.held(container.id) as mount:
                status: int | None = None
                try:
                    failpoints.reach("run.begin")
                    status = launch.run(
                        mount, spec, on_start=started, on_dead=dead, on_left=lambda: left.append(container.id)
                    )
                except ProcessError as error:
                    status = error.status
                    raise
                finally:
                    failpoints.reach("run.ended")
                    self._finished(container.id, status)
        finally:
            for each in left:
                self._tidy(layers, each)
        return status

    def entrance(
        self,
        ref: str,
        command: Sequence[str],
        *,
        env: Sequence[str] = (),
        working_dir: str | None = None,
        user: str | None = None,
        tty: bool = False,
        interactive: bool = False,
    ) -> tuple[Owner, ProcessSpec]:
        """Give what `runtime.enter.enter` needs to run a command; see `Container.execute`.

        Raises:
            InUseError: it is not running.
        """
        from layerfs.runtime import process

        container = self.get(ref)
        owner = self._owner(container)
        if owner is None:
            raise InUseError(
                f"container {container.name} is not running", hint=f"`layerfs start {container.name}` first"
            )
        own = container.settings
        settings = replace(
            own,
            command=tuple(command),
            entrypoint=(),
            env=(*own.env, *env),
            working_dir=working_dir or own.working_dir,
            user=own.user if user is None else user,
            tty=tty,
            interactive=interactive,
        )
        config = self._images.get(container.image_digest).config.config
        return owner, process.resolve(config, settings, hostname=container.id[:12])

    def stop(self, ref: str, *, signal: int | None, seconds: float) -> None:
        """Stop a container; see `Container.stop`."""
        from layerfs import signals

        owner, number = self.stoppable(ref, signal=signal)
        if owner is not None:
            signals.stop(owner, number, seconds=seconds)
            self.wait_at_rest(ref)

    def stoppable(self, ref: str, *, signal: int | None) -> tuple[Owner | None, int]:
        """Say which process is to be stopped, None when there is none, and by which signal first.

        Raises:
            InvalidError: the image's StopSignal is none.
        """
        from layerfs import signals

        container = self.get(ref)
        if signal is None:
            asked = self._images.get(container.image_digest).config.config.stop_signal
            signal = signals.parse(asked) if asked else signals.TERM
        return self._owner(container), signal

    def wait_at_rest(self, ref: str) -> None:
        """Wait until nobody holds the layer of a container whose process has ended.

        Raises:
            InUseError: somebody does after ten seconds; its process may have been started again.
        """
        # It may have been one of `run --rm`, and be gone.
        with contextlib.suppress(NotFoundError):
            self._wait_for_layer(self.get(ref))

    def process_of(self, ref: str) -> Owner | None:
        """Name the process 1 of a container, None when it does not run."""
        return self._owner(self.get(ref))

    def wait(self, ref: str) -> int | None:
        """Wait for a container's process; see `Container.wait`."""
        from layerfs import signals

        owner = self._owner(self.get(ref))
        if owner is not None:
            signals.wait(owner)
            self.wait_at_rest(ref)
        return self.get(ref).exit_code

    def _owner(self, container: Container) -> Owner | None:
        """Name a running container's process 1."""
        row = self._database.row(
            "SELECT pid, start, boot FROM containers WHERE id = ? AND status = 'running'", container.id
        )
        owner = None if row is None else Owner(*row)
        return owner if owner is not None and liveness.alive(owner) else None

    def unpack(
        self,
        manifest: Manifest,
        config: ImageConfig,
        *,
        driver: str | None = None,
        progress: Progress | None = None,
    ) -> str | None:
        """See that an image's layers are unpacked, and name the topmost; None for an image without layers.

        They are those of `driver`, the store's when None.
        """
        if not manifest.layers:
            return None
        pairs = zip(manifest.layers, config.diff_ids, strict=True)
        steps = [Step(layer.digest, diff_id) for layer, diff_id in pairs]
        return self.layers_of(driver or self._driver).apply_all(steps, progress=progress).name

    def list(self) -> list[Container]:
        """Give every container, the newest first."""
        rows = self._database.rows(f"SELECT {_COLUMNS} FROM containers ORDER BY created_ns DESC, id")
        return [self._container(row) for row in rows]

    def get(self, ref: str) -> Container:
        """Find a container by its name, its id, or the start of its id.

        Raises:
            NotFoundError: there is none.
            InvalidError: several containers' ids start so.
        """
        found = self.find(ref)
        if found is None:
            from layerfs import similar

            names = [name for (name,) in self._database.rows("SELECT name FROM containers ORDER BY name")]
            raise NotFoundError(
                f"there is no container {ref}",
                hint=similar.meant(ref, names) or "layerfs ps -a lists what there is",
            )
        return found

    def find(self, ref: str) -> Container | None:
        """Find a container as `get` does; None when there is none.

        Raises:
            InvalidError: several containers' ids start so.
        """
        row = self._database.row(f"SELECT {_COLUMNS} FROM containers WHERE name = ?1 OR id = ?1", ref)
        if row is None and re.fullmatch("[0-9a-f]{1,64}", ref):
            rows = self._database.rows(f"SELECT {_COLUMNS} FROM containers WHERE id GLOB ?", ref + "*")
            if len(rows) > 1:
                raise InvalidError(
                    f"{ref!r} is the start of several containers' ids", hint="write more of it"
                )
            row = rows[0] if rows else None
        return None if row is None else self._container(row)

    def remove(self, ref: str, *, force: bool = False) -> None:
        """Remove a container with its layer; `force` takes its mounts away, and ends its process, first.

        Who still uses such a mount keeps the files that he has open, and finds the others gone.

        Raises:
            NotFoundError: there is no such container.
            InUseError: it is running or mounted, and there is no `force`, or it is mounted out of our reach.
        """
        container = self.get(ref)
        layers = self.layers_of(container.driver)
        if container.status == "running":
            if not force:
                raise InUseError(
                    f"container {container.name} is running",
                    hint="wait for its end, or remove it with --force",
                )
            # The process's own `run --rm` may be first to remove it.
            with contextlib.suppress(NotFoundError):
                self._kill(container)
        if force:
            for target in container.mounts():
                layers.unmount(target, force=True)
        try:
            layers.remove(container.id)
        except NotFoundError:
            # It had lost its layer.
            with self._database.transaction() as connection:
                connection.execute("DELETE FROM containers WHERE id = ?", (container.id,))
                self._database.records.keep(connection, "containers", container.id)
        container.log.unlink(missing_ok=True)

    def recover(self) -> None:
        """Mark containers as exited whose process ended without a word."""
        rows = self._database.rows(
            "SELECT id, driver, pid, start, boot FROM containers WHERE status = 'running'"
        )
        for container_id, driver, pid, start, boot in rows:
            if not liveness.alive(Owner(pid, start, boot)):
                # Its driver may not work here any more.
                with contextlib.suppress(LayerfsError):
                    self._tidy(self.layers_of(driver), container_id)
                self._lost(container_id, pid, start)

    def _tidy(self, layers: Layers, container_id: str) -> None:
        """Take the mount points away that a run made and could not take away itself."""
        from layerfs.runtime import places

        with contextlib.suppress(LayerfsError, OSError):
            found = places.left(layers.changes(container_id))
            if found:
                with layers.opened(container_id, read_only=False) as root:
                    places.remove_left(root, found)

    @contextlib.contextmanager
    def opened(self, container: Container, *, read_only: bool) -> Iterator[int]:
        """Open the root of a container's tree for the length of a block, as its processes see it."""
        with contextlib.ExitStack() as stack:
            root = -1
            if container.pid is not None:
                with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                    # By now the process has a root of its own: it is recorded after its program was executed.
                    root = os.open(f"/proc/{container.pid}/root", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                    stack.callback(os.close, root)
            if root < 0:
                layers = self.layers_of(container.driver)
                root = stack.enter_context(layers.opened(container.id, read_only=read_only))
            yield root

    def commit(
        self,
        container: Container,
        name: str | None,
        *,
        author: str,
        message: str,
        changes: Sequence[str],
        annotations: Mapping[str, str],
        compression: Compression,
        progress: Progress,
    ) -> Image:
        """Make an image of a container; see `Container.commit`."""
        from layerfs import committing
        from layerfs.capture import capture

        if name is not None:
            full_name(name)
        base = self._images.get(container.image_digest)
        self._images.require_layers(base)
        committing.check_instructions(changes)
        with Lease(self._database) as lease:
            layer = None
            if container.status != "running":
                # While it runs there is in its layer what its process needs for itself.
                layers = self.layers_of(container.driver)
                layer = capture(
                    layers, layers.stat(container.id), lease, compression=compression, warn=self.warn,
                    progress=progress,
                )  # fmt: skip
            is_unpacked = layer is not None
            if layer is None:
                layer = committing.layer_of_changes(
                    self._blobs, lease, container.changes(), compression=compression, warn=self.warn,
                    progress=progress,
                )  # fmt: skip
            if layer is not None and layer.diff_id == committing.EMPTY_LAYER:
                layer = None
            image = committing.build_image(
                self._images, self._blobs, lease, layer, base=base, author=author, message=message,
                created_by=" ".join(container.settings.command or ()) or "layerfs commit", changes=changes,
                annotations=annotations,
                unpack=None if is_unpacked else functools.partial(self.unpack, progress=progress),
            )  # fmt: skip
            # The name comes last, so that it never stands for a tree that cannot be unpacked.
            if name is not None:
                return self._images.tag(str(image.digest), name)
            return self._images.get(str(image.digest))

    def _kill(self, container: Container) -> None:
        """Kill a container's process, and wait until nobody holds its layer any more."""
        from layerfs import signals

        owner = self._owner(container)
        if owner is not None:
            signals.kill(owner)
        self._wait_for_layer(container)

    def _wait_for_layer(self, container: Container) -> None:
        layers = self.layers_of(container.driver)
        driver_id = layers.stat(container.id).driver_id
        deadline = time.monotonic() + _KILL_SECONDS
        while True:
            try:
                with layers.lock(driver_id, name=container.id):
                    return
            except InUseError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.01)

    def _insert(
        self,
        container_id: str,
        name: str | None,
        image: Image,
        called: str,
        settings: RunSettings,
        driver: str,
    ) -> None:
        chosen = name or names.make_up()
        known = self._images.name_of(called)
        shown = familiar(known) if known is not None else next(iter(image.names), called)
        values = (
            container_id, driver, str(image.digest), shown,
            settings.to_json(), now_ns(),
        )  # fmt: skip
        attempt = 0
        while True:
            try:
                with self._database.transaction() as connection:
                    connection.execute(
                        _INSERT,
                        (*values, chosen),
                    )
                    self._database.note(connection, "containers", container_id)
                return
            except sqlite3.IntegrityError as error:
                if "containers.name" not in str(error):
                    raise NotFoundError(f"image {called} was removed meanwhile") from error
                if name is not None:
                    raise _taken(name) from error
            attempt += 1
            chosen = f"{names.make_up()}{attempt if attempt > 3 else ''}"

    def _started(self, container_id: str, pid: int) -> None:
        with self._database.transaction() as connection:
            connection.execute(
                "UPDATE containers SET status = 'running', exit_code = NULL, started_ns = ?,"
                " finished_ns = NULL, pid = ?, start = ?, boot = ? WHERE id = ?",
                (now_ns(), pid, liveness.start_time(pid) or 0, liveness.boot_id(), container_id),
            )

    def _finished(self, container_id: str, exit_code: int | None) -> None:
        with self._database.transaction() as connection:
            connection.execute(
                "UPDATE containers SET status = 'exited', exit_code = ?, finished_ns = ?, pid = NULL,"
                " start = NULL, boot = NULL WHERE id = ?",
                (exit_code, now_ns(), container_id),
            )

    def _lost(self, container_id: str, pid: int, start: int) -> None:
        """Mark a container as exited, unless who waits for its process, or starts it anew, was faster."""
        with self._database.transaction() as connection:
            connection.execute(
                "UPDATE containers SET status = 'exited', exit_code = NULL, finished_ns = ?, pid = NULL,"
                " start = NULL, boot = NULL WHERE id = ? AND status = 'running' AND pid = ? AND start = ?",
                (now_ns(), container_id, pid, start),
            )

    def _container(self, row: tuple[Any, ...]) -> Container:
        from layerfs.runtime.settings import RunSettings

        container_id, name, driver, image, image_name, settings, *rest = row
        status, exit_code, created, started, finished, pid, start, boot = rest
        if status == "running" and not liveness.alive(Owner(pid, start, boot)):
            status, exit_code, pid = "exited", None, None
        return Container(
            id=container_id,
            name=name,
            image=image_name,
            image_digest=image,
            driver=driver,
            settings=RunSettings.from_json(settings),
            status=status,
            exit_code=exit_code,
            created=created / 1e9,
            started=None if started is None else started / 1e9,
            finished=None if finished is None else finished / 1e9,
            pid=pid,
            _containers=self,
        )


def _taken(name: str) -> ExistsError:
    return ExistsError(
        f"there is a container {name} already", hint=f"remove it (layerfs rm {name}) or choose another name"
    )


def _absolute(path: Path | str) -> bytes:
    """Make a host path absolute as text: a final ``/.`` means something."""
    return os.path.join(os.fsencode(os.getcwd()), os.fsencode(path))


@contextlib.contextmanager
def _host() -> Iterator[int]:
    root = os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield root
    finally:
        os.close(root)
