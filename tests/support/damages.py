"""Every kind of damage that a store can suffer, done to a real one by hand, past layerfs."""

from __future__ import annotations

import io
import os
import shutil
import sqlite3
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from layerfs import linux
from layerfs.digest import Digest
from layerfs.leases import Lease
from layerfs.mount import Bind
from layerfs.registry.settings import Options
from layerfs.seekable.tables import Tables
from layerfs.store import Store
from tests.support.tiny_images import TinyImage, layout_files, write_files

TIME_NS = 1_600_000_000 * 10**9


class Setting(NamedTuple):
    """A store at `root` with the images of `fill`, not open; `registry` is a host that has ``app``, or ""."""

    root: Path
    driver: str
    registry: str

    @property
    def database(self) -> Path:
        return self.root / "layerfs.db"

    def rows(self, statement: str, *values: object) -> list[tuple[str, ...]]:
        connection = sqlite3.connect(self.database)
        try:
            connection.execute("PRAGMA foreign_keys = OFF")
            found = connection.execute(statement, values).fetchall()
            connection.commit()
            return found
        finally:
            connection.close()

    def layer(self, image: str, number: int = 0) -> str:
        """The directory name of one of an image's layers, which are counted from the bottom."""
        with Store.open(self.root) as store:
            return store.layers.stat(store.images.get(self.name(image)).chain_ids[number]).driver_id

    def name(self, image: str) -> str:
        return f"{self.registry}/{image}:1" if self.registry else f"{image}:1"

    def file(self, path: str, image: str = "app", number: int = 0) -> Path:
        """A file of a layer, in the driver's own directory."""
        tree = "tree" if self.driver == "vfs" else "diff"
        return self.root / "drivers" / self.driver / self.layer(image, number) / tree / path

    def blob(self, which: str, image: str = "app") -> Path:
        """A blob of the bottom layer of an image, or the image's own."""
        found: object
        with Store.open(self.root) as store:
            one = store.images.get(self.name(image))
            layer = store.layers.stat(one.chain_ids[0])
            found = {
                "layer": one.manifest.layers[0].digest, "config": one.id, "manifest": one.digest,
                "toc": layer.toc, "skeleton": layer.skeleton,
            }[which]  # fmt: skip
            assert isinstance(found, Digest)
            return store.blobs.path(found)


class Damage(NamedTuple):
    """One kind of damage.

    `found` is what a check calls it: its kind, and a part of its words; the kind is empty where nothing is
    left to be found. `source` is a part of what it is repaired from. `deep`: only a check of contents sees
    it. `registry`: only a registry has what is needed.
    `lost` says in words what does not come back by itself.
    """

    name: str
    do: Callable[[Setting], object]
    found: tuple[str, str]
    source: str
    deep: bool = False
    registry: bool = False
    lost: str = ""


def _tar(
    files: dict[str, tuple[bytes, int]], *, more: Callable[[tarfile.TarFile], None] = lambda tar: None
) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, (content, mode) in files.items():
            entry = tarfile.TarInfo(name)
            entry.mode, entry.mtime = mode, TIME_NS // 10**9
            if name.endswith("/"):
                entry.type = tarfile.DIRTYPE
            entry.size = len(content)
            if name == "etc/marked":
                entry.pax_headers = {"SCHILY.xattr.user.colour": "blue"}
            archive.addfile(entry, io.BytesIO(content))
        more(archive)
    return packed.getvalue()


def _links(archive: tarfile.TarFile) -> None:
    for name, kind, target in (
        ("etc/link", tarfile.SYMTYPE, "plain"),
        ("etc/hard", tarfile.LNKTYPE, "etc/plain"),
    ):
        entry = tarfile.TarInfo(name)
        entry.type, entry.linkname, entry.mtime = kind, target, TIME_NS // 10**9
        archive.addfile(entry)


def layers() -> list[bytes]:
    """Two layers, as tars: files of every kind, and changes to them."""
    text = {f"usr/file{number}": (b"%d" % number * 700, 0o644) for number in range(20)}
    low = {
        "etc/": (b"", 0o755), "etc/plain": (b"plain text" * 99, 0o640), "etc/marked": (b"marked", 0o4755),
        "etc/other": (b"other text", 0o600), "usr/": (b"", 0o755), **text,
    }  # fmt: skip
    high = {"usr/.wh.file3": (b"", 0o644), "usr/file4": (b"changed", 0o600), "new/.wh..wh..opq": (b"", 0o644)}
    return [_tar(low, more=_links), _tar(high)]


def fill(place: Path, driver: str, registry: str) -> Setting:
    """Make a store: ``app`` of compressed layers, ``plain`` of another, a container of each with changes."""
    packed = TinyImage(tars=layers())
    plain = TinyImage(
        tars=[_tar({"plain": (b"plain" * 999, 0o600), "second": (b"second" * 999, 0o600)})], compress=False
    )
    setting = Setting(place / "root", driver, registry)
    for name, image in (("app", packed), ("plain", plain)):
        write_files(place / name, layout_files([image.entry(name="1")], image.blobs))
    with Store.open(setting.root, driver=driver) as store:
        for name in ("app", "plain"):
            store.pull(f"oci:{place}/{name}:1", setting.name(name))
            box = store.containers.create(setting.name(name), name=f"{name}-box")
            with box.mounted() as tree:
                (tree / "mine").write_text("not to be lost")
            if registry:
                store.push(setting.name(name), f"docker://{setting.name(name)}", options=Options())
        blob = store.images.get(setting.name("app")).manifest.layers[0].digest
        Tables(store._database, store.blobs).build(blob)
    return setting


# -- doing damage


def _keeping_times(path: Path, change: Callable[[], object]) -> None:
    before, above = path.lstat(), path.parent.lstat()
    change()
    if os.path.lexists(path):
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns), follow_symlinks=False)
    os.utime(path.parent, ns=(above.st_atime_ns, above.st_mtime_ns))


def flip(path: Path, *, at: int = 0) -> None:
    """Change a byte, and leave size and times as they were."""

    def change() -> None:
        data = bytearray(path.read_bytes())
        data[at] ^= 1
        path.write_bytes(data)

    _keeping_times(path, change)


def _halve(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _replace_symlink(path: Path) -> None:
    def change() -> None:
        path.unlink()
        path.symlink_to("elsewhere")

    _keeping_times(path, change)


def _part_link(path: Path) -> None:
    def change() -> None:
        data = path.read_bytes()
        found = path.stat()
        path.unlink()
        path.write_bytes(data)
        path.chmod(found.st_mode & 0o7777)

    _keeping_times(path, change)


def _add(path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("foreign")


def _whiteout(setting: Setting) -> None:
    path = setting.file("usr/file5", number=1)
    if setting.driver == "vfs":
        _keeping_times(path, path.unlink)
    else:
        linux_mknod(path)


def linux_mknod(path: Path) -> None:
    """Make what hides a name for overlayfs."""
    above = path.parent.lstat()
    os.mknod(path, 0o020000, os.makedev(0, 0))
    os.utime(path.parent, ns=(above.st_atime_ns, above.st_mtime_ns))


def _no_database(setting: Setting) -> None:
    for suffix in ("", "-wal", "-shm"):
        setting.database.with_name(f"layerfs.db{suffix}").unlink(missing_ok=True)


def _spoil_page(setting: Setting) -> None:
    setting.rows("PRAGMA wal_checkpoint(TRUNCATE)")
    (root,) = setting.rows("SELECT rootpage FROM sqlite_master WHERE name = 'images'")[0]
    (size,) = setting.rows("PRAGMA page_size")[0]
    with setting.database.open("r+b") as file:
        file.seek((int(root) - 1) * int(size))
        file.write(b"\xff" * int(size))


def _no_records_either(setting: Setting) -> None:
    _no_database(setting)
    shutil.rmtree(setting.root / "records")


def _orphan(setting: Setting) -> None:
    with Store.open(setting.root) as store:
        store.driver.create("orphan1", [])


def _half_made(setting: Setting) -> None:
    (setting.root / "drivers" / setting.driver / ".new-abc-12345678" / "diff").mkdir(parents=True)


def _half_removed(setting: Setting) -> None:
    with Store.open(setting.root) as store:
        store.layers.table.mark(store.layers.prepare("key"))


def _stale_mount(setting: Setting) -> None:
    with Store.open(setting.root) as store:
        layer = store.layers.stat(store.containers.get("app-box").id)
        record = store.layers.ledger.record(
            layer.row,
            b"/nowhere",
            Bind("layerfs-x", Path("/nowhere"), read_only=False),
            read_only=False,
            held=False,
        )
        with store._database.transaction() as connection:
            connection.execute("UPDATE mounts SET start = 1 WHERE id = ?", (record,))


def _unrecorded_mount(setting: Setting) -> None:
    target = setting.root.parent / "mounted"
    target.mkdir()
    with Store.open(setting.root) as store:
        store.containers.get("app-box").mount(target)
    setting.rows("DELETE FROM mounts")


def unmount(setting: Setting) -> None:
    """Take away what a damage has mounted."""
    target = setting.root.parent / "mounted"
    if os.path.ismount(target):
        linux.umount(target)


def _dead_lease(setting: Setting) -> None:
    with Store.open(setting.root) as store:
        Lease(store._database).add("blob", "sha256:" + "0" * 64)
    setting.rows("UPDATE leases SET start = 1")


def _old(path: Path, content: bytes = b"") -> None:
    path.write_bytes(content)
    os.utime(path, (0, 0))


def _sql(statement: str) -> Callable[[Setting], object]:
    return lambda setting: setting.rows(statement)


def damages() -> Iterator[Damage]:
    """Give them all."""
    yield from _of_layers()
    yield from _of_blobs()
    yield from _of_the_database()
    yield from _of_the_rest()


def _of_layers() -> Iterator[Damage]:
    def one(name: str, do: Callable[[Setting], object], words: str, *, deep: bool = False) -> Damage:
        return Damage(name, do, ("layer", words), "its blob", deep=deep)

    yield one("a file of a layer is missing", lambda s: s.file("etc/plain").unlink(), "missing")
    yield one("a file of a layer is truncated", lambda s: _halve(s.file("etc/plain")), "bytes, not")
    yield one(
        "a file has other content, size and time as before",
        lambda s: flip(s.file("etc/plain")),
        "its content",
        deep=True,
    )
    yield one("a file has another mode", lambda s: s.file("etc/plain").chmod(0o666), "its mode")
    yield one("a setuid bit is gone", lambda s: s.file("etc/marked").chmod(0o755), "its mode")
    yield one("a file has another owner", lambda s: os.chown(s.file("etc/plain"), 7, 7), "its owner")
    yield one(
        "an xattr has another value",
        lambda s: os.setxattr(s.file("etc/marked"), "user.colour", b"red"),
        "its xattr user.colour is another",
    )
    yield one(
        "an xattr is missing",
        lambda s: os.removexattr(s.file("etc/marked"), "user.colour"),
        "its xattr user.colour is missing",
    )
    yield one(
        "an xattr is foreign", lambda s: os.setxattr(s.file("etc/plain"), "user.x", b"1"), "its xattr user.x"
    )
    yield one(
        "a file has another time", lambda s: os.utime(s.file("etc/plain"), (1, 1)), "its modification time"
    )
    yield one("a foreign file is in a layer", lambda s: _add(s.file("etc/foreign")), "does not belong")
    yield one("a foreign directory is in a layer", lambda s: _add(s.file("alien/foreign")), "does not belong")
    yield one("a foreign whiteout hides a file", _whiteout, "usr/file5")
    yield one("a symlink has another target", lambda s: _replace_symlink(s.file("etc/link")), "its target")
    yield one("a hard link is a file of its own", lambda s: _part_link(s.file("etc/hard")), "no hard link")
    yield one("a directory is a file", lambda s: (shutil.rmtree(s.file("usr")), s.file("usr").touch()), "is")
    yield one("a layer's directory is missing", lambda s: shutil.rmtree(s.file("").parent), "no files of it")
    yield Damage(
        "a file of a plain layer has another mode", lambda s: s.file("plain", "plain").chmod(0o666),
        ("layer", "its mode"), "its skeleton",
    )  # fmt: skip
    yield Damage(
        "a file of a plain layer has other content", lambda s: s.file("plain", "plain").write_bytes(b"wrong"),
        ("layer", "bytes, not"), "/plain:1", registry=True,
    )  # fmt: skip


def _of_blobs() -> Iterator[Damage]:
    def one(name: str, do: Callable[[Setting], object], kind: str, words: str) -> Damage:
        return Damage(name, do, (kind, words), "/app:1", registry=True)

    yield one("a layer's blob is missing", lambda s: s.blob("layer").unlink(), "image", "is missing")
    yield one("a layer's blob is truncated", lambda s: _halve(s.blob("layer")), "blob", "bytes, not")
    yield one("a layer's blob has other content", lambda s: flip(s.blob("layer"), at=50), "blob", "hashes to")
    yield one("a config is altered", lambda s: flip(s.blob("config")), "blob", "hashes to")
    yield one("a config is missing", lambda s: s.blob("config").unlink(), "image", "is missing")
    yield one("a manifest is missing", lambda s: s.blob("manifest").unlink(), "image", "is missing")
    yield one("a manifest is altered", lambda s: flip(s.blob("manifest")), "blob", "hashes to")
    yield Damage(
        "a foreign file is among the blobs",
        lambda s: _old(s.root / "blobs/sha256/notes.txt", b"x"),
        ("blob", "no digest"),
        "quarantine",
    )
    yield Damage(
        "others may read a blob",
        lambda s: s.blob("layer").chmod(0o644),
        ("blob", "others may read"),
        "its mode",
    )
    yield Damage(
        "a table of contents is missing",
        lambda s: s.blob("toc").unlink(),
        ("layer", "table of contents"),
        "its blob",
    )
    yield Damage(
        "a table of contents is altered",
        lambda s: flip(s.blob("toc"), at=20),
        ("blob", "hashes to"),
        "quarantine",
    )
    yield Damage(
        "a skeleton is missing",
        lambda s: s.blob("skeleton", "plain").unlink(),
        ("layer", "skeleton"),
        "/plain:1",
        registry=True,
    )
    yield Damage(
        "a skeleton is truncated",
        lambda s: _halve(s.blob("skeleton", "plain")),
        ("blob", "hashes to"),
        "quarantine",
        registry=True,
    )
    yield Damage(
        "a seek table is missing",
        _seek_table(Path.unlink),
        ("blob", "seek points"),
        "when the table is needed",
    )
    yield Damage("a seek table is altered", _seek_table(flip), ("blob", "hashes to"), "quarantine")


def _seek_table(do: Callable[[Path], object]) -> Callable[[Setting], object]:
    def damage(setting: Setting) -> None:
        ((seek,),) = setting.rows("SELECT seek FROM seek_tables")
        do(setting.root / "blobs" / seek.replace(":", "/"))

    return damage


def _of_the_database() -> Iterator[Damage]:
    def lost(name: str, do: Callable[[Setting], object], words: str) -> Damage:
        return Damage(name, do, ("database", words), "what lies beside")

    def row(name: str, statement: str, kind: str) -> Damage:
        return Damage(name, _sql(statement), (kind, "lost"), "its record")

    yield lost("the database is missing", _no_database, "missing")
    yield lost(
        "the database is garbage", lambda s: s.database.write_bytes(b"garbage" * 9999), "not a database"
    )
    yield lost("the database is empty", lambda s: os.truncate(s.database, 0), "no table")
    yield lost(
        "the database is cut in half",
        lambda s: (s.rows("PRAGMA wal_checkpoint(TRUNCATE)"), _halve(s.database)),
        "",
    )
    yield lost("a page of the database is overwritten", _spoil_page, "")
    yield lost("a table of the database is missing", _sql("DROP TABLE image_layers"), "no table")
    yield Damage(
        "the database and all records are missing",
        _no_records_either,
        ("database", "missing"),
        "what lies beside",
        lost="names, containers, and layers without a blob; their files are in quarantine",
    )
    yield row("the row of a name is lost", "DELETE FROM tags", "name")
    yield row("the row of an image is lost", "DELETE FROM images", "image")
    yield row("an image's links are lost", "DELETE FROM links", "image")
    yield row("an image's list of layers is lost", "DELETE FROM image_layers", "image")
    yield row("the rows of layers are lost", "DELETE FROM layers", "layer")
    yield row("the row of a container is lost", "DELETE FROM containers", "container")
    yield Damage(
        "format.json is garbage",
        lambda s: (s.root / "format.json").write_text("{"),
        ("store", "cannot be read"),
        "anew",
    )
    yield Damage(
        "a record is garbage",
        lambda s: next((s.root / "records/images").iterdir()).write_text("{no"),
        ("record", "none any more"),
        "the database",
    )


def _of_the_rest() -> Iterator[Damage]:
    yield Damage(
        "a directory of no layer is in a driver's", _orphan, ("orphan", "does not know it"), "quarantine"
    )
    yield Damage(
        "a foreign file is in a driver's directory",
        lambda s: _old(s.root / "drivers" / s.driver / "notes.txt"),
        ("orphan", "does not know it"),
        "quarantine",
    )
    yield Damage("a layer was half made", _half_made, ("leftover", "layer"), "removed")
    yield Damage("a layer was half removed", _half_removed, ("", "opening the store finishes it"), "")
    yield Damage(
        "a mount is recorded, and not there", _stale_mount, ("mount", "not there"), "the record was removed"
    )
    yield Damage(
        "a mount is there, and not recorded", _unrecorded_mount, ("mount", "not recorded"), "it was recorded"
    )
    yield Damage(
        "a lock's file is left",
        lambda s: _old(s.root / "locks/0123456789abcdef"),
        ("leftover", "lock"),
        "removed",
    )
    yield Damage("a lease's process is gone", _dead_lease, ("leftover", "lease"), "removed")
    yield Damage(
        "a blob was half received",
        lambda s: _old(s.root / "tmp/ingest-sha256-abc", b"x"),
        ("leftover", "partial"),
        "removed",
    )
    yield Damage(
        "something is left in the trash",
        lambda s: _old(s.root / "trash/blob-1", b"x"),
        ("leftover", "trash"),
        "removed",
    )
    yield Damage(
        "others may look into the store",
        lambda s: s.root.chmod(0o755),
        ("store", "others may look"),
        "its mode",
    )
