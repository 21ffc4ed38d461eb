"""Lazy mounts of ordinary users, by fusermount3 and attributes in ``user.``."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.estargz_images import EstargzImage
from tests.support.lazy_images import layout, packed
from tests.support.registries import PASSWORD, USER, Registry, installed
from tests.support.servers import ends, servers
from tests.support.token_server import TokenServer
from tests.support.users import Login, login

_UID = 61235
_RANGES = "7000000:65536"
_NEEDED = ("fusermount3", "nsenter", "setpriv", "unshare")

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user"),
    pytest.mark.skipif(
        not os.path.exists("/dev/fuse") or not all(map(shutil.which, _NEEDED)),
        reason="needs /dev/fuse, fusermount3, nsenter, setpriv and unshare",
    ),
]

BIG = os.urandom(1 << 16) * 90


@pytest.fixture(scope="module")
def user() -> Iterator[Login]:
    with login(_UID, Path(f"/tmp/layerfs-lazy-{os.getpid()}")) as made:
        yield made


@pytest.mark.parametrize("more", [0, 1000], ids=["at once", "later"])
def test_an_ordinary_user_mounts_lazily(user: Login, more: int) -> None:
    members = ("d", None), ("d/f", b"data" * 1000), ("d/big", BIG), ("secret", b"s", {"mode": 0o000})
    many = (("d/closed", None, {"mode": 0o555}), *((f"d/closed/{number}", b"") for number in range(more)))
    image = EstargzImage(packed(*members, *many))
    layout(user.home / "layout", image)
    os.system(f"chmod -R a+rX {user.home / 'layout'}")
    target = user.home / "target"
    user.run("mkdir", "-p", target)
    user.layerfs("mount", "--lazy", "--name", "work", f"oci:{user.home / 'layout'}:1", target)
    try:
        assert user.run("ls", target).stdout.split() == ["d", "secret", "stargz.index.json"]
        assert user.run("cat", target / "d" / "f").stdout == "data" * 1000
        assert user.run("sha256sum", target / "d" / "big").stdout.split()[0] == _sha256(BIG)
        assert len(user.run("ls", target / "d" / "closed").stdout.split()) == more
        user.run("sh", "-c", f"echo more >> {target}/d/f")
        assert user.run("cat", target / "d" / "f").stdout == "data" * 1000 + "more\n"
        assert "user.overlay" not in user.run("getfattr", "-d", "-m-", target / "secret", check=False).stdout
        assert "C /d/f" in user.layerfs("diff", "work").stdout
        (server,) = servers(user.home)
    finally:
        user.layerfs("umount", target)
    assert ends(server)
    assert "layerfs" not in user.layerfs("check").stdout
    user.layerfs("rm", "work")
    shutil.rmtree(user.home / "layout")


@pytest.mark.parametrize("files", [1, 1100], ids=["at once", "later"])
def test_who_has_one_id_mounts_what_belongs_to_others_as_roots(
    user: Login, files: int, tmp_path: Path
) -> None:
    own = {"uid": 1042, "gid": 43}
    members = [(f"d/{number}", b"x", own) for number in range(files)]
    image = EstargzImage(packed(("d", None, own), *members, ("top", b"y", own)))
    layout(user.home / f"others{files}", image)
    subprocess.run(["chmod", "-R", "a+rX", user.home / f"others{files}"], check=True)
    place, target = f"oci:{user.home}/others{files}:1", user.home / f"target{files}"
    user.run("mkdir", target)
    done = user.layerfs("--root", user.home / "refusing", "mount", "--lazy", place, target, check=False)
    assert done.returncode == 1 and done.stderr.splitlines()[-1].endswith("--squash-owners")
    user.layerfs("mount", "--lazy", "--squash-owners", "--name", f"w{files}", place, target)
    try:
        places = [target / "top", target / "d", target / "d" / str(files - 1)]
        assert user.run("stat", "-c", "%u:%g", *places).stdout.split() == [f"{_UID}:{_UID}"] * 3
        assert user.run("cat", *places[::2]).stdout == "yx"
    finally:
        user.layerfs("umount", target)


@pytest.fixture(scope="module")
def ranged() -> Iterator[Login]:
    if not (shutil.which("newuidmap") and shutil.which("newgidmap")):
        pytest.skip("no newuidmap or newgidmap")
    with login(_UID, Path(f"/tmp/layerfs-ranged-{os.getpid()}"), ranges=_RANGES) as made:
        yield made


@pytest.mark.skipif(not installed(), reason="docker-registry is not installed")
def test_who_has_ranges_reads_on_from_a_registry_whose_tokens_expire(ranged: Login, tmp_path: Path) -> None:
    own = {"uid": 1042, "gid": 43}
    image = EstargzImage(
        packed(("d", None), ("d/f", b"first", own), ("d/g", b"second", own), ("d/big", BIG, {"gid": 5}))
    )
    with (
        TokenServer(tmp_path / "tokens") as tokens,
        Registry(tmp_path / "r", auth=tokens.settings()) as registry,
    ):
        tokens.lifetime = 1
        place = f"docker://{registry.host}/private/app:1"
        layout(tmp_path / "layout", image)
        copy = [sys.executable, "-m", "layerfs", "copy", "-q", "--creds", f"{USER}:{PASSWORD}"]
        subprocess.run([*copy, f"oci:{tmp_path / 'layout'}:1", place], check=True, capture_output=True)
        ranged.layerfs("login", "-u", USER, "--password-stdin", registry.host, input=PASSWORD)
        target = ranged.home / "target"
        ranged.run("mkdir", target)
        ranged.layerfs("mount", "--lazy", "--name", "work", place, target)
        try:
            owners = ranged.run("stat", "-c", "%u:%g", target / "d/f", target / "d/big").stdout.split()
            assert owners == ["7001041:7000042", f"{_UID}:7000004"]
            for name, content in (("f", "first"), ("g", "second")):
                # The other half of what a token lasts is left unused.
                time.sleep(0.6)
                asked = len(tokens.requests)
                assert ranged.run("cat", target / "d" / name).stdout == content
                assert len(tokens.requests) > asked
            assert {each.user for each in tokens.requests} == {USER}
            assert ranged.run("sha256sum", target / "d/big").stdout.split()[0] == _sha256(BIG)
            ranged.run("sh", "-c", f"echo more >> {target}/d/big")
            inside = ["unshare", "stat", "-c", "%u:%g", target / "d/f"]
            assert ranged.layerfs(*inside).stdout == "1042:43\n"
        finally:
            ranged.layerfs("umount", target)
        assert "C /d/big" in ranged.layerfs("diff", "work").stdout
        ranged.layerfs("check")


def _sha256(data: bytes) -> str:
    import hashlib

    return hashlib.sha256(data).hexdigest()
