"""What real programs do in a tree: git and a compiler, SQLite, PostgreSQL."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from benchmarks.clock import Clock
from benchmarks.commands import Commands, Words, missing
from benchmarks.workloads.base import Bench, Workload, in_folder

_FUNCTIONS: Final = 20
_IDENTITY: Final = {
    "GIT_AUTHOR_NAME": "benchmark",
    "GIT_AUTHOR_EMAIL": "benchmark@localhost",
    "GIT_AUTHOR_DATE": "2023-11-14T22:13:20Z",
    "GIT_COMMITTER_NAME": "benchmark",
    "GIT_COMMITTER_EMAIL": "benchmark@localhost",
    "GIT_COMMITTER_DATE": "2023-11-14T22:13:20Z",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_SYSTEM": "/dev/null",
}
_POSTGRES: Final = "postgres"


def clone_and_compile(folder: Path, bench: Bench, clock: Clock) -> None:
    """Clone a C project with git and compile it with make."""
    repository = _repository(bench)
    target = folder / "cloned"
    with clock():
        bench.commands.run(["git", "clone", "--quiet", repository, target], environment=_IDENTITY)
        bench.commands.run(["make", "--quiet", "-C", target])


def _repository(bench: Bench) -> Path:
    """A project of generated C, the same every time."""
    place = bench.scratch / "project"
    if place.exists():
        return place
    place.mkdir()
    names = [f"part{number}" for number in range(bench.scale.sources)]
    for name in names:
        (place / f"{name}.c").write_text(_source(name))
        (place / f"{name}.h").write_text(f"int {name}(int x);\n")
    calls = "".join(f"    x = {name}(x);\n" for name in names)
    includes = "".join(f'#include "{name}.h"\n' for name in names)
    (place / "main.c").write_text(
        f"{includes}int main(void)\n{{\n    int x = 0;\n{calls}    return x & 1;\n}}\n"
    )
    (place / "Makefile").write_text(_makefile([f"{name}.o" for name in (*names, "main")]))
    git: Words = ["git", "-C", place]
    for words in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "-m", "generated"]):
        bench.commands.run([*git, *words], environment=_IDENTITY)
    return place


def _makefile(objects: Sequence[str]) -> str:
    listed = " ".join(objects)
    return f"CFLAGS = -O1\nprogram: {listed}\n\t$(CC) -o $@ {listed}\n"


def _source(name: str) -> str:
    functions = "".join(map(_function, range(_FUNCTIONS)))
    calls = "".join(f"    x = f{number}(x);\n" for number in range(_FUNCTIONS))
    return (
        f'#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n#include "{name}.h"\n'
        f"{functions}int {name}(int x)\n{{\n{calls}    return x;\n}}\n"
    )


def _function(number: int) -> str:
    body = f'    printf("%d\\n", x);\n    return x * {number + 3} ^ x >> {number % 7};\n'
    return f"static int f{number}(int x)\n{{\n{body}}}\n"


def sqlite_inserts(folder: Path, bench: Bench, clock: Clock) -> None:
    """Insert rows into a SQLite database with a write-ahead log, a durable transaction each."""
    _insert(folder, bench, clock, "PRAGMA journal_mode=WAL")


def sqlite_rollback(folder: Path, bench: Bench, clock: Clock) -> None:
    """The same with a rollback journal, which is a file made and deleted for each transaction."""
    _insert(folder, bench, clock, "PRAGMA journal_mode=DELETE")


def _insert(folder: Path, bench: Bench, clock: Clock, mode: str) -> None:
    with contextlib.closing(sqlite3.connect(folder / "database", isolation_level=None)) as database:
        database.execute(mode)
        database.execute("PRAGMA synchronous=FULL")
        database.execute("CREATE TABLE numbers (number INTEGER PRIMARY KEY, text TEXT)")
        with clock(bench.scale.statements):
            for number in range(bench.scale.statements):
                database.execute("INSERT INTO numbers VALUES (?, ?)", (number, "x" * 100))


def initdb(folder: Path, bench: Bench, clock: Clock) -> None:
    """Make a PostgreSQL database cluster."""
    place = _owned(folder)
    with clock():
        bench.commands.run(_as_postgres("initdb", "--pgdata", place))


def pgbench(folder: Path, bench: Bench, clock: Clock) -> None:
    """Run pgbench's transactions, two clients, on a PostgreSQL server with its files in the tree."""
    place = _owned(folder)
    commands = bench.commands
    commands.run(_as_postgres("initdb", "--no-sync", "--pgdata", place))
    with _server(commands, place) as where:
        commands.run(_as_postgres("pgbench", *where, "--initialize", "--quiet", "postgres"))
        count = str(max(bench.scale.statements // 2, 1))
        with clock(2 * int(count)):
            words = ["--client", "2", "--transactions", count, "--no-vacuum", "postgres"]
            commands.run(_as_postgres("pgbench", *where, *words))


def _owned(folder: Path) -> Path:
    place = folder / "cluster"
    place.mkdir(0o700)
    account = pwd.getpwnam(_POSTGRES)
    os.chown(place, account.pw_uid, account.pw_gid)
    return place


@contextlib.contextmanager
def _server(commands: Commands, place: Path) -> Iterator[list[str]]:
    """Have a server running for the length of a block, which gets the options that lead clients to it."""
    settings = f"-c listen_addresses= -c unix_socket_directories={place}"
    control: Words = ["--pgdata", place, "--wait", "--silent"]
    commands.run(_as_postgres("pg_ctl", *control, "--log", place / "log", "-o", settings, "start"))
    try:
        yield ["--host", str(place)]
    finally:
        commands.run(_as_postgres("pg_ctl", *control, "--mode", "fast", "stop"))


def _as_postgres(program: str, *words: str | Path) -> list[str | Path]:
    account = ["setpriv", f"--reuid={_POSTGRES}", f"--regid={_POSTGRES}", "--clear-groups"]
    return [*account, _program(program) or program, *words]


def _program(name: str) -> str | None:
    """Find a program of PostgreSQL, which Debian keeps out of the search path."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return str(found[-1]) if found else shutil.which(name)


def _no_postgres() -> str:
    absent = [name for name in ("initdb", "pg_ctl", "pgbench") if _program(name) is None]
    if absent:
        return f"not installed: {', '.join(absent)}"
    try:
        pwd.getpwnam(_POSTGRES)
    except KeyError:
        return f"there is no user {_POSTGRES}"
    return ""


def _no_compiler() -> str:
    return missing("git", "make", "cc")


WORKLOADS: Final[tuple[Workload, ...]] = (
    in_folder("clone+compile", clone_and_compile, why_not=_no_compiler, slow=True),
    in_folder("sqlite-wal", sqlite_inserts),
    in_folder("sqlite-rollback", sqlite_rollback, slow=True),
    in_folder("postgres-initdb", initdb, why_not=_no_postgres, slow=True),
    in_folder("postgres-pgbench", pgbench, why_not=_no_postgres, slow=True),
)
