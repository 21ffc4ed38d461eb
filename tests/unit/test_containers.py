"""Containers: made, mounted, copied into and out of, committed, exported, removed."""

from __future__ import annotations

import io
import os
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfs import linux, mounting, names
from layerfs.containers import Container
from layerfs.errors import ExistsError, InUseError, InvalidError, NotFoundError
from layerfs.runtime.settings import RunSettings
from layerfs.store import Store
from layerfs.tree.diff import listing


@pytest.fixture(params=["overlay2", "aufs", "vfs"])
def store(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Store]:
    tree = tmp_path / "tree"
    (tree / "etc").mkdir(parents=True)
    (tree / "etc/hosts").write_text("localhost\n")
    (tree / "bin").mkdir()
    (tree / "bin/su").write_bytes(b"program")
    (tree / "bin/su").chmod(0o4755)
    (tree / "lib").symlink_to("bin")
    os.mkfifo(tree / "fifo")
    with Store.open(tmp_path / "root", driver=request.param, durability="none") as opened:
        opened.import_tree(tree, "base", changes=['CMD ["/bin/su"]', "ENV A=1"])
        yield opened
    for info in reversed(mounting.mounts_below(tmp_path)):
        linux.umount(info.target, linux.MNT_DETACH)


def changes(box: Container) -> set[tuple[str, bytes]]:
    return {(kind.value, path) for kind, path in listing(box.changes())}


def edit(box: Container) -> None:
    with box.mounted() as place:
        (place / "etc/new").write_text("new")
        (place / "bin/su").unlink()
        (place / "etc/hosts").write_text("changed\n")


def test_a_container_is_found_by_name_id_and_the_start_of_its_id(store: Store) -> None:
    box = store.containers.create("base", name="box", command=["a", "b"])
    assert len(box.id) == 64
    assert (box.name, box.image, box.status, box.exit_code, box.pid) == (
        "box",
        "base:latest",
        "created",
        None,
        None,
    )
    assert box.settings.command == ("a", "b")
    for ref in ("box", box.id, box.id[:12], box.id[:3]):
        assert store.containers.get(ref) == box
    for ref in ("other", "BOX", "zz"):
        with pytest.raises(NotFoundError):
            store.containers.get(ref)
    assert store.containers.list() == [box]


def test_names_are_made_up_and_are_taken_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    first = store.containers.create("base", name="box")
    with pytest.raises(ExistsError):
        store.containers.create("base", name="box")
    for name in ("", "-x", "a b", "ä", "a/b"):
        with pytest.raises(InvalidError):
            store.containers.create("base", name=name)
    monkeypatch.setattr(names, "make_up", lambda: "calm_otter")
    made = [store.containers.create("base").name for _ in range(5)]
    assert made[0] == "calm_otter"
    assert len(set(made)) == 5
    store.containers.remove(first.id)
    assert len(store.containers.list()) == 5
    assert len(list(store.layers.walk())) == 6, "a refused container leaves no layer"


def test_settings_are_kept(store: Store) -> None:
    settings = RunSettings(env=("A=1",), working_dir="/x", network="host", read_only=True)
    box = store.containers.create("base", settings=settings)
    assert store.containers.get(box.id).settings == settings


def test_changes_show_what_was_done(store: Store) -> None:
    box = store.containers.create("base")
    assert changes(box) == set()
    edit(box)
    expected = {("A", b"/etc/new"), ("C", b"/etc/hosts"), ("D", b"/bin/su"), ("C", b"/etc"), ("C", b"/bin")}
    assert changes(box) == expected


def test_a_commit_is_an_image_with_one_layer_more(store: Store) -> None:
    box = store.containers.create("base", command=["sh", "-c", "x"])
    edit(box)
    image = box.commit("new:1", author="me", message="why", changes=["ENV B=2"])
    base = store.images.get("base")
    assert image.manifest.layers[:1] == base.manifest.layers
    assert image.config.diff_ids[:1] == base.config.diff_ids
    assert len(image.config.diff_ids) == 2
    assert image.config.config.env == ("A=1", "B=2")
    assert image.config.config.cmd == ("/bin/su",)
    step = image.config.history[-1]
    assert (step.author, step.comment, step.created_by) == ("me", "why", "sh -c x")
    again = store.containers.create("new:1")
    with again.mounted() as place:
        assert (place / "etc/hosts").read_text() == "changed\n"
        assert (place / "etc/new").read_text() == "new"
        assert not (place / "bin/su").exists()
    assert changes(again) == set()


def test_equal_changes_give_equal_layers(store: Store) -> None:
    made = []
    for _ in range(2):
        box = store.containers.create("base")
        with box.mounted() as place:
            (place / "etc/new").write_text("new")
            os.utime(place / "etc/new", (5, 5))
            os.utime(place / "etc", (6, 6))
        made.append(box.commit().config.diff_ids)
    assert made[0] == made[1]


def test_export_is_the_whole_tree(store: Store) -> None:
    box = store.containers.create("base")
    edit(box)
    buffer = io.BytesIO()
    box.export(buffer.write)
    buffer.seek(0)
    with tarfile.open(fileobj=buffer) as archive:
        members = {member.name.rstrip("/"): member for member in archive}
        hosts = archive.extractfile(members["etc/hosts"])
        assert hosts is not None and hosts.read() == b"changed\n"
    assert {"etc", "etc/hosts", "etc/new", "bin", "lib", "fifo"} <= members.keys()
    assert "bin/su" not in members
    assert members["lib"].issym()
    assert members["fifo"].isfifo()


def test_files_are_copied_in_with_all_that_they_have(store: Store, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "deep").mkdir(parents=True)
    (source / "deep/file").write_bytes(b"data")
    (source / "deep/file").chmod(0o4711)
    os.chown(source / "deep/file", 12, 34)
    os.chmod(source / "deep/file", 0o4711)
    os.setxattr(source / "deep/file", "user.x", b"y")
    os.link(source / "deep/file", source / "second")
    (source / "link").symlink_to("/nowhere")
    os.utime(source / "deep", ns=(1, 123_456_789))
    box = store.containers.create("base")
    box.copy_in(source, b"/etc")
    box.copy_in(source / "deep/file", b"/etc/renamed")
    box.copy_in(source / "deep/file", b"lib/")
    box.copy_in(f"{source}/.", b"/")
    with box.mounted() as place:
        copied = place / "etc/source/deep/file"
        found = copied.stat()
        assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (12, 34, 0o4711)
        assert os.getxattr(copied, "user.x") == b"y"
        assert found.st_nlink == 2
        assert (place / "etc/source/deep").stat().st_mtime_ns == 123_456_789
        assert os.readlink(place / "etc/source/link") == "/nowhere"
        assert (place / "etc/renamed").read_bytes() == b"data"
        assert (place / "bin/file").read_bytes() == b"data", "the link lib was followed inside"
        assert (place / "lib").is_symlink()
        assert (place / "second").read_bytes() == b"data"
    with pytest.raises(NotFoundError):
        box.copy_in(source, b"/missing/place")
    with pytest.raises(NotFoundError):
        box.copy_in(tmp_path / "missing", b"/etc")
    with pytest.raises(InvalidError):
        box.copy_in(source, b"/etc/hosts")


def test_files_are_copied_out(store: Store, tmp_path: Path) -> None:
    box = store.containers.create("base")
    (tmp_path / "out").mkdir()
    box.copy_out(b"/etc/hosts", tmp_path / "out")
    box.copy_out(b"/etc", tmp_path / "copy")
    box.copy_out(b"lib/su", tmp_path / "su")
    assert (tmp_path / "out/hosts").read_text() == "localhost\n"
    assert (tmp_path / "copy/hosts").read_text() == "localhost\n"
    assert stat.S_IMODE((tmp_path / "su").stat().st_mode) == 0o4755
    with pytest.raises(NotFoundError):
        box.copy_out(b"/missing", tmp_path)


def test_links_in_the_tree_never_lead_out(store: Store, tmp_path: Path) -> None:
    box = store.containers.create("base")
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "file").write_text("x")
    with box.mounted() as place:
        (place / "escape").symlink_to("../" * 20 + str(tmp_path)[1:])
        (place / "absolute").symlink_to(tmp_path)
    for link in (b"/escape", b"/absolute"):
        with pytest.raises(NotFoundError):
            box.copy_out(link + b"/secret", tmp_path / "stolen")
        with pytest.raises(NotFoundError):
            box.copy_in(tmp_path / "file", link)
    assert not (tmp_path / "stolen").exists()
    assert sorted(os.listdir(tmp_path)) == ["file", "root", "secret", "tree"]


def test_copies_go_through_a_mount_that_is_there(store: Store, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    box = store.containers.create("base")
    box.mount(target)
    (tmp_path / "file").write_text("x")
    box.copy_in(tmp_path / "file", b"/etc")
    assert (target / "etc/file").read_text() == "x"
    (target / "etc/other").write_text("y")
    box.copy_out(b"/etc/other", tmp_path / "other")
    assert (tmp_path / "other").read_text() == "y"
    assert ("A", b"/etc/file") in changes(box)
    with pytest.raises(InUseError, match="mounted"):
        store.containers.remove(box.id)
    store.containers.remove(box.id, force=True)
    assert mounting.mounts_below(tmp_path) == []
    assert store.containers.list() == []


def test_what_is_at_work_cannot_be_removed_and_exits_when_its_process_is_gone(store: Store) -> None:
    box = store.containers.create("base", name="box")
    with store.layers.held(box.id), pytest.raises(InUseError):
        store.containers.remove("box")
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    store.containers._started(box.id, child)
    os.waitpid(child, 0)
    assert store.containers.get("box").status == "exited"
    store.containers.recover()
    assert store.info().running == 0
    store.containers.remove("box")
    assert list(store.layers.walk(labels={"layerfs.container": "1"})) == []


def test_an_instruction_that_cannot_be_done_is_refused_before_anything_is_written(store: Store) -> None:
    box = store.containers.create("base")
    with box.mounted() as tree:
        (tree / "new").write_text("new")
    before = set(store.blobs.list())
    with pytest.raises(InvalidError):
        box.commit("app:2", changes=["RUN ls"])
    assert set(store.blobs.list()) == before
