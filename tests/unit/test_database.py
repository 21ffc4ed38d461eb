"""The store's database: its file, its transactions, and leases."""

from __future__ import annotations

import errno
import multiprocessing
import os
import sqlite3
from pathlib import Path

import pytest

from layerfs import leases, liveness
from layerfs.database import SCHEMA_VERSION, Database
from layerfs.errors import InUseError, StoreError
from layerfs.leases import Lease


@pytest.fixture
def path(tmp_path: Path) -> Path:
    Database.create(tmp_path / "db")
    return tmp_path / "db"


@pytest.fixture
def database(path: Path) -> Database:
    return Database(path)


def test_a_new_database_is_private_and_sound(path: Path, database: Database) -> None:
    assert path.stat().st_mode & 0o777 == 0o600
    assert database.problems() == []
    assert database.row("PRAGMA journal_mode") == ("wal",)


def test_creating_twice_keeps_what_is_there(path: Path, database: Database) -> None:
    database.set("driver", "vfs")
    Database.create(path)
    assert Database(path).get("driver") == "vfs"


def test_a_database_of_another_version_is_refused_with_a_hint(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    connection.close()
    with pytest.raises(StoreError, match="schema version") as caught:
        Database(path)
    assert caught.value.hint and "newer layerfs" in caught.value.hint


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "db").write_bytes(b"not a database" * 100)
    with pytest.raises(StoreError, match="cannot be read"):
        Database(tmp_path / "db")


def test_a_missing_database_is_refused_and_not_made(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="missing"):
        Database(tmp_path / "db")
    assert not (tmp_path / "db").exists()


def test_an_exception_undoes_the_transaction(database: Database) -> None:
    with pytest.raises(RuntimeError), database.transaction() as connection:
        connection.execute("INSERT INTO meta VALUES ('a', 'b')")
        raise RuntimeError
    assert database.get("a") is None
    database.set("a", "c")
    assert database.get("a") == "c"


def test_a_full_disk_undoes_the_transaction_and_is_called_so(database: Database) -> None:
    database.set("key", "before")
    (pages,) = database.row("PRAGMA page_count") or (0,)
    database.row(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(OSError, match="No space left") as caught:
        database.set("key", "x" * 100_000)
    assert caught.value.errno == errno.ENOSPC
    assert database.get("key") == "before"
    database.row("PRAGMA max_page_count = 100000")
    database.set("key", "after")
    assert database.get("key") == "after"


@pytest.mark.parametrize(
    ("durability", "plain", "durable"), [("none", 0, 0), ("commit", 1, 2), ("full", 2, 2)]
)
def test_durability_decides_which_transactions_are_synced(
    path: Path, durability: str, plain: int, durable: int
) -> None:
    database = Database(path, durability=durability)  # type: ignore[arg-type]
    with database.transaction(durable=True):
        assert database.row("PRAGMA synchronous") == (durable,)
    with database.transaction():
        assert database.row("PRAGMA synchronous") == (plain,)


def _add(path: Path, count: int) -> None:
    database = Database(path)
    for _ in range(count):
        with database.transaction() as connection:
            (value,) = connection.execute("SELECT value FROM meta WHERE key = 'n'").fetchone()
            connection.execute("UPDATE meta SET value = ? WHERE key = 'n'", (str(int(value) + 1),))


def test_transactions_of_several_processes_do_not_lose_updates(path: Path, database: Database) -> None:
    database.set("n", "0")
    workers = [multiprocessing.get_context("spawn").Process(target=_add, args=(path, 50)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert database.get("n") == "150"


def test_a_lease_protects_until_it_is_left(database: Database) -> None:
    with Lease(database) as lease:
        lease.add("blob", "sha256:aa", "sha256:bb")
        with database.transaction() as connection:
            assert leases.leased(connection, "blob", "sha256:aa")
            assert not leases.leased(connection, "layer", "sha256:aa")
        assert leases.expire(database) == []
    assert database.rows("SELECT * FROM leases") == []
    assert database.rows("SELECT * FROM lease_items") == []


def test_a_lease_of_a_dead_process_expires(database: Database) -> None:
    lease = Lease(database)
    lease.add("layer", "x")
    with database.transaction() as connection:
        # The same number, started at another time: another process.
        connection.execute("UPDATE leases SET start = start - 1")
    assert leases.expire(database) == [lease.id]
    assert database.rows("SELECT * FROM lease_items") == []


def test_a_zombie_is_not_alive() -> None:
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(write)
        os.read(read, 1)
        os._exit(0)
    os.close(read)
    start = liveness.start_time(pid)
    assert start is not None
    owner = liveness.Owner(pid, start, liveness.boot_id())
    assert liveness.alive(owner)
    os.close(write)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert not liveness.alive(owner)
    os.waitpid(pid, 0)
    assert not liveness.alive(owner)
    assert not liveness.alive(owner._replace(boot="another"))


def test_this_process_is_found_in_its_mount_namespace() -> None:
    assert liveness.alive(liveness.this_process())
    assert os.getpid() in liveness.processes_in_namespace(liveness.mount_namespace())
    assert os.getpid() not in liveness.processes_in_namespace(1)


def test_who_waits_too_long_for_another_writer_is_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("layerfs.database.BUSY_SECONDS", 0.05)
    Database.create(tmp_path / "db")
    one, other = Database(tmp_path / "db"), Database(tmp_path / "db")
    with one.transaction(), pytest.raises(InUseError, match="has been writing"), other.transaction():
        pass
    with other.transaction() as connection:
        connection.execute("INSERT INTO meta VALUES ('key', 'value')")
    one.close()
    other.close()
