"""Lazy mounts: the tree at once, out of tables of contents; data when it is read, verified and kept."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfs import Store
from layerfs.errors import BudgetError, LayerError, LayerfsError, NotFoundError, UnsupportedError
from layerfs.tree.budget import Budget
from tests.support.estargz_images import EstargzImage
from tests.support.lazy_images import absent, files, layout, lazily, logged, packed, seen
from tests.support.tiny_images import TinyImage

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not os.path.exists("/dev/fuse"), reason="needs root and /dev/fuse"
)

BIG = os.urandom(1 << 20) * 11
LAYERS = (
    packed(
        ("./", None, {"mode": 0o711, "mtime": 1_400_000_000, "gid": 3}),
        ("etc", None, {"mode": 0o750, "gid": 7}),
        ("etc/passwd", b"root:x:0:0\n", {"mode": 0o640, "uid": 5, "gid": 6}),
        ("etc/removed", b"gone later"),
        ("etc/empty", b""),
        ("bin", None),
        ("bin/su", b"#!/bin/sh\n" * 1000, {"mode": 0o4755}),
        ("bin/link", (b"2", "su")),
        ("hard", (b"1", "etc/passwd")),
        ("null", b"", {"type": b"3", "devmajor": 1, "devminor": 3, "mode": 0o666}),
        ("xattrs", b"some", {"pax_headers": {"SCHILY.xattr.user.colour": "red"}}),
        ("hidden", None),
        ("hidden/below", b"not seen"),
        ("big", BIG),
    ),
    packed(
        ("etc", None, {"mode": 0o755, "mtime": 1_600_000_000}),
        ("etc/.wh.removed", b""),
        ("etc/hosts", b"127.0.0.1 localhost\n" * 300),
        ("hidden", None),
        ("hidden/.wh..wh..opq", b""),
        ("hidden/shown", b"seen"),
    ),
)


@pytest.fixture
def image() -> EstargzImage:
    return EstargzImage(*LAYERS)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store", durability="none") as opened:
        yield opened


def test_a_lazy_mount_shows_what_the_mount_of_the_pulled_image_does(
    image: EstargzImage, store: Store, tmp_path: Path
) -> None:
    place = layout(tmp_path / "layout", image)
    with Store.open(tmp_path / "whole", driver="fuse") as whole:
        whole.pull(place, "app")
        container = whole.containers.create("app")
        with container.mounted() as tree:
            expected = seen(tree)
    with lazily(store, place, tmp_path / "lazy") as tree:
        assert seen(tree) == expected
        # The first one's table of contents lies below the second one's.
        assert absent(store) == {"etc/removed", "hidden/below", "stargz.index.json"}
        # And once more, without the server's memory of what was absent.
        assert seen(tree) == expected


def test_nothing_is_fetched_before_it_is_read(image: EstargzImage, store: Store, tmp_path: Path) -> None:
    with lazily(store, layout(tmp_path / "layout", image), tmp_path / "lazy") as tree:
        subprocess.run(["ls", "-lR", tree], check=True, capture_output=True)
        subprocess.run(["find", tree, "-xattr"], check=False, capture_output=True)
        assert {"etc/passwd", "bin/su", "big", "etc/hosts", "hidden/shown"} <= absent(store)
        assert (tree / "etc" / "hosts").read_bytes() == b"127.0.0.1 localhost\n" * 300
        assert "etc/hosts" not in absent(store)
        assert {"etc/passwd", "bin/su", "big", "hidden/shown"} <= absent(store)


def test_the_blocks_and_holes_of_a_file_are_those_of_one_that_is_here(
    image: EstargzImage, store: Store, tmp_path: Path
) -> None:
    with lazily(store, layout(tmp_path / "layout", image), tmp_path / "lazy") as tree:
        assert (tree / "big").stat().st_blocks * 512 >= len(BIG)
        with open(tree / "big", "rb") as file:
            assert os.lseek(file.fileno(), 0, os.SEEK_HOLE) == len(BIG)
        subprocess.run(["cp", "--sparse=auto", tree / "etc" / "passwd", tmp_path / "copy"], check=True)
        assert (tmp_path / "copy").read_bytes() == b"root:x:0:0\n"


def test_a_large_file_comes_in_pieces(image: EstargzImage, store: Store, tmp_path: Path) -> None:
    with lazily(store, layout(tmp_path / "layout", image), tmp_path / "lazy") as tree:
        (stored,) = (store.root / "drivers" / "fuse").glob("*/diff/big")
        with open(tree / "big", "rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
            assert os.pread(file.fileno(), 100, 9 << 20) == BIG[9 << 20 : (9 << 20) + 100]
            assert 0 < stored.stat().st_blocks * 512 <= 5 << 20
            assert "big" in absent(store)
            assert (tree / "big").stat().st_mtime == 1_500_000_000
        assert (tree / "big").read_bytes() == BIG
        assert "big" not in absent(store)
        assert stored.stat().st_mtime == 1_500_000_000


def test_what_was_fetched_stays_for_later_mounts(image: EstargzImage, store: Store, tmp_path: Path) -> None:
    place = layout(tmp_path / "layout", image)
    with lazily(store, place, tmp_path / "lazy") as tree:
        (tree / "etc" / "hosts").read_bytes()
    for blob in image.layers:
        for path in files(tmp_path / "layout" / "blobs"):
            if path.read_bytes() == blob:
                path.write_bytes(b"")
    name = store.images.list()[0].names[0]
    with lazily(store, name, tmp_path / "lazy") as tree:
        assert (tree / "etc" / "hosts").read_bytes() == b"127.0.0.1 localhost\n" * 300
        with pytest.raises(OSError) as raised:
            (tree / "bin" / "su").read_bytes()
        assert raised.value.errno == errno.EIO
    assert "cannot fetch /bin/su: " in logged(store)
    found = store.check()
    assert found.sound
    (note,) = found.notes
    assert note.what.startswith("cannot fetch /bin/su: ") and "tries again" in note.hint
    (repaired,) = store.check(repair=True).problems
    assert repaired.repaired and "quarantine/fuse-" in repaired.how
    assert store.check().notes == ()


def test_reading_an_image_that_was_mounted_lazily_says_what_helps(
    image: EstargzImage, store: Store, tmp_path: Path
) -> None:
    place = layout(tmp_path / "layout", image)
    with lazily(store, place, tmp_path / "lazy"):
        (name,) = store.images.list()[0].names
        with pytest.raises(NotFoundError, match=f"of {name} is not in the store") as raised:
            store.read_image(name)
    assert f"layerfs pull SOURCE {name}`" in raised.value.hint
    store.pull(place, name)
    with store.read_image(name) as opened:
        assert b"".join(opened.read(b"/etc/hosts")) == b"127.0.0.1 localhost\n" * 300


def test_a_read_only_mount_fetches_too(image: EstargzImage, store: Store, tmp_path: Path) -> None:
    with lazily(store, layout(tmp_path / "layout", image), tmp_path / "lazy", read_only=True) as tree:
        assert (tree / "etc" / "hosts").read_bytes() == b"127.0.0.1 localhost\n" * 300
        assert (tree / "big").read_bytes() == BIG


def test_changes_have_what_they_need_fetched(image: EstargzImage, store: Store, tmp_path: Path) -> None:
    with lazily(store, layout(tmp_path / "layout", image), tmp_path / "lazy", name="work") as tree:
        with open(tree / "etc" / "hosts", "ab") as file:
            file.write(b"more")
        assert (tree / "etc" / "hosts").read_bytes() == b"127.0.0.1 localhost\n" * 300 + b"more"
        (tree / "hard").chmod(0o600)
        assert (tree / "etc" / "passwd").read_bytes() == b"root:x:0:0\n"
        # Who empties a file does not need its data.
        (tree / "bin" / "su").write_bytes(b"new")
        assert "bin/su" in absent(store)
        with open(tree / "big", "r+b") as file:
            file.seek(5 << 20)
            file.write(b"changed")
        expected = BIG[: 5 << 20] + b"changed" + BIG[(5 << 20) + 7 :]
        assert (tree / "big").read_bytes() == expected
        os.rename(tree / "hidden", tree / "moved")
        assert (tree / "moved" / "shown").read_bytes() == b"seen"
    changed = [path for _, path in store.containers.get("work").diff()]
    assert b"/etc/hosts" in changed and b"/big" in changed and b"/moved" in changed
    with store.containers.get("work").mounted() as again:
        assert (again / "big").read_bytes() == expected


def test_many_readers_are_served_at_once(image: EstargzImage, store: Store, tmp_path: Path) -> None:
    with lazily(store, layout(tmp_path / "layout", image), tmp_path / "lazy") as tree:
        found: list[bytes] = []

        def read(name: str) -> None:
            found.append((tree / name).read_bytes())

        names = ["big", "etc/hosts", "etc/passwd", "hard", "bin/su", "big", "hidden/shown"] * 3
        threads = [threading.Thread(target=read, args=(name,)) for name in names]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(map(len, found)) == sorted((tree / name).stat().st_size for name in names)
        assert found.count(BIG) == 6


def test_programs_run_out_of_a_lazy_mount(store: Store, tmp_path: Path) -> None:
    program = Path(shutil.which("true") or "/bin/true").resolve().read_bytes()
    image = EstargzImage(packed(("run", program, {"mode": 0o755})))
    with lazily(store, layout(tmp_path / "layout", image), tmp_path / "lazy") as tree:
        subprocess.run([tree / "run"], check=True)


def test_two_mounts_of_one_image_share_its_layers(image: EstargzImage, store: Store, tmp_path: Path) -> None:
    place = layout(tmp_path / "layout", image)
    with lazily(store, place, tmp_path / "one") as one, lazily(store, place, tmp_path / "two") as two:
        before = (two / "etc" / "hosts").stat().st_mtime_ns
        assert (one / "etc" / "hosts").read_bytes() == (two / "etc" / "hosts").read_bytes()
        assert (one / "big").read_bytes() == (two / "big").read_bytes() == BIG
        assert (two / "etc" / "hosts").stat().st_mtime_ns == before
    assert len(list((store.root / "drivers" / "fuse").glob("*/bodies"))) == 2


@pytest.mark.parametrize("chunk", [1 << 20, 1 << 12])
def test_data_that_is_not_what_was_promised_is_an_error_and_not_kept(
    store: Store, tmp_path: Path, chunk: int
) -> None:
    image = EstargzImage(packed(("good", b"good" * 3000), ("bad", os.urandom(5000) * 2000)), chunk=chunk)
    place = layout(tmp_path / "layout", image)
    with lazily(store, place, tmp_path / "lazy") as tree:
        (blob,) = (path for path in files(tmp_path / "layout") if path.read_bytes() == image.layers[0])
        data = bytearray(image.layers[0])
        data[len(data) // 2] ^= 1
        blob.write_bytes(data)
        with pytest.raises(OSError) as raised:
            (tree / "bad").read_bytes()
        assert raised.value.errno == errno.EIO
        assert (tree / "good").read_bytes() == b"good" * 3000
        assert "bad" in absent(store)
        assert "cannot fetch /bad: " in logged(store)
        # Whoever mends it can have the data at the next try.
        blob.write_bytes(image.layers[0])
        assert len((tree / "bad").read_bytes()) == 10_000_000


@pytest.mark.parametrize(
    ("name", "kind"),
    [("../../outside", "reg"), ("/../outside", "reg"), ("a/../../outside", "dir"), ("..", "dir")],
)
def test_a_table_of_contents_leads_nowhere_else(store: Store, tmp_path: Path, name: str, kind: str) -> None:
    image = altered(EstargzImage(packed(("a", None), ("f", b"x"))), {"name": name, "type": kind})
    with lazily_or_refused(store, layout(tmp_path / "layout", image), tmp_path / "lazy"):
        pass
    assert not [path for path in tmp_path.rglob("outside") if "diff" not in path.parts]


def test_a_link_in_a_table_of_contents_is_not_followed(store: Store, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    image = altered(
        EstargzImage(packed(("l", (b"2", str(target))), ("f", b"x"))), {"name": "l/outside", "type": "reg"}
    )
    with lazily_or_refused(store, layout(tmp_path / "layout", image), tmp_path / "lazy"):
        pass
    assert list(target.iterdir()) == []


def test_sizes_are_bounded(tmp_path: Path) -> None:
    image = EstargzImage(packed(("f", b"x" * 1000)))
    place = layout(tmp_path / "layout", image)
    with Store.open(tmp_path / "store", budget=Budget(bytes=999)) as store:
        with pytest.raises(BudgetError), lazily(store, place, tmp_path / "lazy"):
            pass
        assert list((store.root / "drivers" / "fuse").glob("*/diff")) == []


def test_a_file_of_absurd_size_is_refused(store: Store, tmp_path: Path) -> None:
    image = altered(EstargzImage(packed(("f", b"x" * 1000))), {"name": "f", "type": "reg", "size": 1 << 62})
    with pytest.raises(LayerfsError), lazily(store, layout(tmp_path / "layout", image), tmp_path / "lazy"):
        pass
    assert store.images.list() == [] and store.containers.list() == []


def test_a_layer_cannot_bring_the_mark_itself(store: Store, tmp_path: Path) -> None:
    marks = {f"SCHILY.xattr.{space}.overlay.layerfs.absent": "nonsense" for space in ("trusted", "user")}
    image = EstargzImage(packed(("f", b"data", {"pax_headers": marks}), ("e", b"", {"pax_headers": marks})))
    with lazily(store, layout(tmp_path / "layout", image), tmp_path / "lazy") as tree:
        assert (tree / "f").read_bytes() == b"data"
        assert os.listxattr(tree / "f") == []
        assert absent(store) == {"stargz.index.json"}


@pytest.mark.parametrize("first", ["push", "save", "create", "commit"])
def test_what_needs_the_whole_image_has_the_rest_come(
    image: EstargzImage, store: Store, tmp_path: Path, first: str
) -> None:
    place = layout(tmp_path / "layout", image)
    with lazily(store, place, tmp_path / "lazy", name="work") as tree:
        (tree / "new").write_text("new")
    (found,) = store.images.list()
    name = found.names[0]
    needs = {
        "push": lambda: store.push(name, f"oci:{tmp_path}/other:1"),
        "save": lambda: store.save([name], tmp_path / "saved"),
        "create": lambda: store.containers.create(name),
        "commit": lambda: store.containers.get("work").commit("other"),
    }
    needs[first]()
    assert store.images.get(name).digest == found.digest
    shutil.rmtree(tmp_path / "layout")
    for each in needs.values():
        each()
    assert store.check().problems == ()


def test_what_needs_the_whole_image_says_so_when_it_cannot_be_had(
    image: EstargzImage, store: Store, tmp_path: Path
) -> None:
    place = layout(tmp_path / "layout", image)
    with lazily(store, place, tmp_path / "lazy", name="work") as tree:
        (tree / "new").write_text("new")
    (found,) = store.images.list()
    name = found.names[0]
    # Its place has another image by now.
    (tmp_path / "layout").rename(tmp_path / "gone")
    layout(tmp_path / "layout", TinyImage(tars=LAYERS[:1]))
    for needs in (
        lambda: store.push(name, f"oci:{tmp_path}/other:1"),
        lambda: store.save([name], tmp_path / "saved"),
        lambda: store.containers.create(name),
        lambda: store.containers.get("work").commit("other"),
    ):
        with pytest.raises(NotFoundError, match=r"not all here.*another image"):
            needs()
    assert [each.names for each in store.images.list()] == [(name,)]
    shutil.rmtree(tmp_path / "layout")
    (tmp_path / "gone").rename(tmp_path / "layout")
    with open(tmp_path / "exported", "wb") as file:
        store.containers.get("work").export(file.write)
    tar = ["tar", "-xOf", tmp_path / "exported", "etc/hosts"]
    assert subprocess.run(tar, check=True, capture_output=True).stdout == b"127.0.0.1 localhost\n" * 300
    # Once it is pulled all of it works.
    store.pull(place, name)
    store.push(name, f"oci:{tmp_path}/other:1")
    store.containers.get("work").commit("other")
    assert store.check().problems == ()


def test_other_drivers_refuse(image: EstargzImage, tmp_path: Path) -> None:
    with (
        Store.open(tmp_path / "store", driver="vfs") as store,
        pytest.raises(UnsupportedError, match="vfs"),
        lazily(store, layout(tmp_path / "layout", image), tmp_path / "lazy"),
    ):
        pass


def test_garbage_collection_takes_what_nothing_uses(
    image: EstargzImage, store: Store, tmp_path: Path
) -> None:
    with lazily(store, layout(tmp_path / "layout", image), tmp_path / "lazy", name="work"):
        store.collect(grace=0)
    assert store.disk_usage().images[0].containers == 1
    store.collect(grace=0)
    assert len(list((store.root / "drivers" / "fuse").glob("*/bodies"))) == 2
    assert store.check().problems == ()
    store.containers.remove("work")
    store.images.remove(store.images.list()[0].names[0])
    store.collect(grace=0)
    assert list((store.root / "drivers" / "fuse").glob("*/bodies")) == []
    assert list(store.blobs.list()) == []


def test_check_with_contents_fetches_nothing(image: EstargzImage, store: Store, tmp_path: Path) -> None:
    with lazily(store, layout(tmp_path / "layout", image), tmp_path / "lazy") as tree:
        (tree / "etc" / "hosts").read_bytes()
    before = absent(store)
    assert store.check(contents=True).problems == ()
    assert absent(store) == before
    (stored,) = (store.root / "drivers" / "fuse").glob("*/diff/etc/hosts")
    found = stored.stat()
    stored.write_bytes(b"-" * found.st_size)
    os.utime(stored, ns=(found.st_mtime_ns, found.st_mtime_ns))
    assert [problem.what for problem in store.check(contents=True).problems] == [
        "/etc/hosts: its content is another"
    ]


def altered(image: EstargzImage, entry: dict[str, object]) -> EstargzImage:
    """Give an image whose table of contents has another entry in front of those of the same name."""
    return image.with_entry(entry)


def lazily_or_refused(store: Store, place: str, target: Path) -> _Refusable:
    return _Refusable(store, place, target)


class _Refusable:
    """Mounts for a block, which is left out where the layer is refused."""

    def __init__(self, store: Store, place: str, target: Path) -> None:
        self._what = lazily(store, place, target)

    def __enter__(self) -> None:
        try:
            self._what.__enter__()
        except LayerError:
            self._what = None  # type: ignore[assignment]

    def __exit__(self, *error: object) -> None:
        if self._what is not None:
            self._what.__exit__(None, None, None)


def test_a_layer_without_an_index_is_fetched_whole_and_not_unpacked(tmp_path: Path) -> None:
    image = TinyImage(tars=LAYERS)
    place = layout(tmp_path / "layout", image)
    told: list[str] = []
    with Store.open(tmp_path / "store", warn=told.append) as store:
        with Store.open(tmp_path / "whole", driver="fuse") as whole:
            whole.pull(place, "app")
            with whole.containers.create("app").mounted() as tree:
                expected = seen(tree)
        with lazily(store, place, tmp_path / "lazy", name="work") as tree:
            assert [line for line in told if "has no table of contents" in line]
            (tmp_path / "layout").rename(tmp_path / "gone")
            assert {"big", "etc/passwd"} <= absent(store)
            assert seen(tree) == expected
        store.collect(grace=0)
        assert store.check(contents=True).problems == ()
        # All of it is here: a container can be made by any driver.
        (found,) = store.images.list()
        store.containers.create(found.names[0])
