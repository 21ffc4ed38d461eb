"""Lazy mounts of ordinary users, by fusermount3 and attributes in ``user.``."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.estargz_images import EstargzImage
from tests.support.lazy_images import layout, packed
from tests.support.servers import ends, servers
from tests.support.users import Login, login

_UID = 61235
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


def _sha256(data: bytes) -> str:
    import hashlib

    return hashlib.sha256(data).hexdigest()
