"""The content store: nothing unverified is visible, whatever breaks and whoever else writes."""

from __future__ import annotations

import multiprocessing
import os
import time
from pathlib import Path

import pytest

from layerfs.blobs import Blobs
from layerfs.digest import Digest
from layerfs.errors import BudgetError, NotFoundError, VerificationError

DATA = b"layer" * 1000
DIGEST = Digest.of(DATA)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("blobs", "tmp", "trash"):
        (tmp_path / name).mkdir(0o700)
    return tmp_path


@pytest.fixture(params=["commit", "none"])
def blobs(root: Path, request: pytest.FixtureRequest) -> Blobs:
    return Blobs(root, durability=request.param)


def partials(root: Path) -> list[str]:
    return os.listdir(root / "tmp")


def test_what_is_put_can_be_read_and_is_private(blobs: Blobs, root: Path) -> None:
    assert blobs.put(DATA) == DIGEST
    assert blobs.put(DATA) == DIGEST
    assert blobs.has(DIGEST)
    assert blobs.size(DIGEST) == len(DATA)
    assert blobs.read(DIGEST, limit=1 << 20) == DATA
    assert list(blobs.list()) == [DIGEST]
    assert blobs.path(DIGEST).stat().st_mode & 0o777 == 0o600
    assert blobs.path(DIGEST).parent.stat().st_mode & 0o777 == 0o700
    assert partials(root) == []


def test_a_blob_is_invisible_until_it_is_committed(blobs: Blobs) -> None:
    with blobs.ingest(DIGEST, len(DATA)) as ingest:
        ingest.write(DATA)
        assert not blobs.has(DIGEST)
        assert list(blobs.list()) == []
        assert ingest.commit() == DIGEST
    assert blobs.has(DIGEST)


def test_a_wrong_digest_is_refused_and_its_bytes_are_gone(blobs: Blobs, root: Path) -> None:
    with pytest.raises(VerificationError, match="was promised"), blobs.ingest(DIGEST) as ingest:
        ingest.write(b"something else")
        ingest.commit()
    assert not blobs.has(DIGEST)
    assert partials(root) == []


def test_more_bytes_than_promised_are_refused_at_once(blobs: Blobs, root: Path) -> None:
    with pytest.raises(VerificationError, match="longer"), blobs.ingest(DIGEST, 10) as ingest:
        ingest.write(DATA)
    assert partials(root) == []


def test_fewer_bytes_than_promised_are_refused_but_kept_for_later(blobs: Blobs) -> None:
    with pytest.raises(VerificationError, match="ended after"), blobs.ingest(DIGEST, len(DATA)) as ingest:
        ingest.write(DATA[:100])
        ingest.commit()
    with blobs.ingest(DIGEST, len(DATA)) as ingest:
        assert ingest.offset == 100
        ingest.write(DATA[100:])
        ingest.commit()
    assert blobs.read(DIGEST, limit=1 << 20) == DATA


def test_a_broken_ingest_goes_on_where_it_ended(blobs: Blobs) -> None:
    with pytest.raises(ConnectionError), blobs.ingest(DIGEST, len(DATA)) as ingest:
        ingest.write(DATA[:1234])
        raise ConnectionError
    with blobs.ingest(DIGEST, len(DATA)) as ingest:
        assert ingest.offset == 1234
        ingest.write(DATA[ingest.offset :])
        ingest.commit()
    blobs.verify(DIGEST)


def test_a_source_that_cannot_seek_begins_again(blobs: Blobs) -> None:
    with pytest.raises(ConnectionError), blobs.ingest(DIGEST) as ingest:
        ingest.write(b"rubbish of an earlier attempt")
        raise ConnectionError
    with blobs.ingest(DIGEST) as ingest:
        ingest.restart()
        ingest.write(DATA)
        ingest.commit()
    blobs.verify(DIGEST)


def test_resumed_rubbish_is_found_out(blobs: Blobs, root: Path) -> None:
    (root / "tmp" / f"ingest-sha256-{DIGEST.hex}").write_bytes(b"x" * 100)
    with pytest.raises(VerificationError), blobs.ingest(DIGEST, len(DATA)) as ingest:
        ingest.write(DATA[ingest.offset :])
        ingest.commit()
    assert partials(root) == []


def test_an_ingest_without_a_digest_leaves_nothing_when_it_breaks(blobs: Blobs, root: Path) -> None:
    with pytest.raises(RuntimeError), blobs.ingest() as ingest:
        ingest.write(DATA)
        raise RuntimeError
    assert partials(root) == []
    with blobs.ingest() as ingest:
        ingest.write(DATA)
        assert ingest.digest == DIGEST
        assert ingest.commit() == DIGEST


def test_two_writers_of_one_blob_do_not_meet(blobs: Blobs, root: Path) -> None:
    with blobs.ingest(DIGEST) as first, blobs.ingest(DIGEST) as second:
        first.write(DATA)
        second.write(DATA[:10])
        assert first.commit() == DIGEST
        second.write(DATA[10:])
        assert second.commit() == DIGEST
    assert partials(root) == []
    blobs.verify(DIGEST)


def test_several_blobs_share_one_sync(root: Path) -> None:
    blobs = Blobs(root)
    with blobs.ingest() as ingest:
        ingest.write(DATA)
        os.sync()
        ingest.commit(synced=True)
    blobs.sync_names()
    blobs.verify(DIGEST)


def test_sha512_blobs_have_a_directory_of_their_own(blobs: Blobs, root: Path) -> None:
    digest = Digest.of(DATA, "sha512")
    with blobs.ingest(digest, len(DATA)) as ingest:
        ingest.write(DATA)
        ingest.commit()
    assert (root / "blobs" / "sha512" / digest.hex).read_bytes() == DATA
    blobs.verify(digest)


def test_what_is_missing_is_not_found(blobs: Blobs) -> None:
    with pytest.raises(NotFoundError):
        blobs.open(DIGEST)
    with pytest.raises(NotFoundError):
        blobs.size(DIGEST)
    assert blobs.delete(DIGEST) == 0


def test_damage_on_disk_is_found(blobs: Blobs) -> None:
    blobs.put(DATA)
    with blobs.path(DIGEST).open("r+b") as file:
        file.write(b"L")
    with pytest.raises(VerificationError, match="damaged"):
        blobs.verify(DIGEST)
    with pytest.raises(VerificationError, match="damaged"):
        blobs.read(DIGEST, limit=1 << 20)


def test_a_document_that_is_too_large_is_not_read(blobs: Blobs) -> None:
    blobs.put(DATA)
    with pytest.raises(BudgetError):
        blobs.read(DIGEST, limit=100)


def test_delete_gives_the_bytes(blobs: Blobs) -> None:
    blobs.put(DATA)
    assert blobs.delete(DIGEST) == len(DATA)
    assert not blobs.has(DIGEST)


def test_sweep_takes_old_partials_that_nobody_writes(blobs: Blobs, root: Path) -> None:
    (root / "tmp" / "ingest-old").write_bytes(b"x" * 10_000)
    os.utime(root / "tmp" / "ingest-old", (0, 0))
    with blobs.ingest() as ingest:
        ingest.write(DATA)
        assert blobs.sweep(older_than=time.time() - 3600) >= 10_000
        assert len(partials(root)) == 1
        assert blobs.sweep(older_than=time.time() + 3600) == 0, "a blob that is being written stays"
        ingest.commit()


def _write(root: Path, times: int) -> None:
    for number in range(times):
        data = DATA * (number + 1)
        with Blobs(root, durability="none").ingest(Digest.of(data), len(data)) as ingest:
            ingest.write(data[ingest.offset :])
            ingest.commit()


def test_several_processes_ingest_the_same_blobs_at_once(root: Path) -> None:
    workers = [multiprocessing.get_context("spawn").Process(target=_write, args=(root, 40)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 4
    blobs = Blobs(root)
    found = list(blobs.list())
    assert len(found) == 40
    for digest in found:
        blobs.verify(digest)
    assert partials(root) == []
