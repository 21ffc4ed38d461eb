"""What the kernel's aufs would be told; whether it would obey is seen only where a kernel has it."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from layerfs_aufs import AufsMount
from layerfs_aufs.mounts import option_strings

from layerfs import mounting
from layerfs.errors import MountError

NUMBERS = b"/dev/shm/numbers"


def test_a_few_branches_are_one_string() -> None:
    assert option_strings([b"/upper", b"/two", b"/one"], writable=True, numbers=NUMBERS) == [
        b"br:/upper=rw:/two=ro+wh:/one=ro+wh,dio,dirperm1,xino=/dev/shm/numbers"
    ]


def test_a_tree_to_be_read_has_no_writable_branch() -> None:
    assert option_strings([b"/one"], writable=False, numbers=NUMBERS) == [
        b"br:/one=ro+wh,dio,dirperm1,xino=/dev/shm/numbers"
    ]


def test_branches_past_the_page_are_appended_in_their_order() -> None:
    strings = option_strings([b"/0", b"/1", b"/2", b"/3", b"/4"], writable=True, numbers=b"/n", page=47)
    assert strings == [
        b"br:/0=rw:/1=ro+wh,dio,dirperm1,xino=/n",
        b"append:/2=ro+wh,append:/3=ro+wh",
        b"append:/4=ro+wh",
    ]


@given(
    st.lists(st.binary(min_size=1, max_size=1024).filter(lambda name: not set(name) & set(b":,=\0")),
             min_size=1, max_size=127),
    st.booleans(),
)  # fmt: skip
def test_no_string_is_longer_than_a_page_and_every_branch_keeps_its_place(
    branches: list[bytes], writable: bool
) -> None:
    first, *rest = option_strings(branches, writable=writable, numbers=NUMBERS)
    assert all(len(each) < 4096 for each in (first, *rest))
    head, *options = first.split(b",")
    assert options == [b"dio", b"dirperm1", b"xino=" + NUMBERS]
    named = head.removeprefix(b"br:").split(b":")
    for each in rest:
        named += [option.removeprefix(b"append:") for option in each.split(b",")]
    assert [each.rpartition(b"=")[0] for each in named] == branches
    modes = [each.rpartition(b"=")[2] for each in named]
    assert modes == [b"rw" if writable else b"ro+wh", *[b"ro+wh"] * (len(branches) - 1)]


def test_a_kernel_without_aufs_refuses_with_a_hint_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.geteuid() != 0 or "aufs" in Path("/proc/filesystems").read_text():
        pytest.skip("needs root, and a kernel without aufs")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    for branch in ("upper", "lower:with,odd=name"):
        (tmp_path / branch).mkdir()
    mount = AufsMount("layerfs-test", (tmp_path / "upper", tmp_path / "lower:with,odd=name"), writable=True)
    with pytest.raises(MountError, match="cannot mount aufs") as raised:
        mounting.open_mount(mount)
    assert raised.value.errno == errno.ENODEV
    assert raised.value.hint == "the kernel has no aufs: try `modprobe aufs`"
    with pytest.raises(MountError):
        mounting.attach(mount, tmp_path)
    assert list((tmp_path / "temporary").iterdir()) == []
