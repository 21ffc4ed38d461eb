"""An image that a real dockerd built shows lazily what umoci unpacks, whatever its layers are packed in."""

from __future__ import annotations

from pathlib import Path

import pytest

from layerfs import Store
from layerfs.testing.snapshot import differences, snapshot
from tests.interop.conftest import BuiltImage
from tests.support.commandline import CommandLine
from tests.support.lazy_images import lazily

# What eStargz adds to every layer, as files that whoever unpacks one sees.
_OWN = (b"stargz.index.json", b".no.prefetch.landmark", b".prefetch.landmark")


@pytest.mark.parametrize("packed", ["gzip", "estargz", "zstd:chunked"])
def test_a_lazy_mount_shows_what_umoci_unpacks(built_image: BuiltImage, tmp_path: Path, packed: str) -> None:
    place = f"oci:{built_image.layout}:{built_image.tag}"
    if packed != "gzip":
        other = f"oci:{tmp_path / 'layout'}:1"
        command = CommandLine(tmp_path / "unused")
        command.good("copy", "--compression", packed, "--force-compression", place, other)
        place = other
    with (
        Store.open(tmp_path / "store", durability="none") as store,
        lazily(store, place, tmp_path / "tree", read_only=True) as tree,
    ):
        seen = {path: facts for path, facts in snapshot(tree).items() if path not in _OWN}
    assert differences(seen, built_image.umoci_tree) == []
