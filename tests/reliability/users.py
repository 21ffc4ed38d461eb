"""Every command as three kinds of user: one with ranges of ids, one without, and root."""

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from layerfs import Store
from layerfs.cli.commands import COMMANDS
from layerfs.value import frozen
from tests.reliability.report import Section
from tests.support import hosttree
from tests.support.registries import PASSWORD, USER, Registry, htpasswd, installed
from tests.support.users import ROOT, Login, login

HELP = "every command as a user with ranges of ids, as one without, and as root"
KINDS = ("with ranges", "without", "root")

_UID = 61237
_RANGES = "7300000:65536"
_LAYERFS = f"{sys.executable} -m layerfs"
_SECONDS = 60
_FAILURE = "FAILS"


@frozen
class Step:
    """One command line; in its words ``{host}`` is the registry, which knows ``{user}``, ``{home}`` is the
    user's own, ``~`` a blank, and ``{layerfs}`` starts layerfs.

    `label` is what the table says, the words when None. `given` is standard input. `refused` are the kinds of
    user who are to get a clear error, `alone` those for whom the step is at all. `says` is in the output.
    """

    words: tuple[str, ...]
    label: str | None = None
    given: str = ""
    says: str = ""
    refused: tuple[str, ...] = ()
    alone: tuple[str, ...] = KINDS
    status: int = 0

    @property
    def title(self) -> str:
        return (self.label or f"`{' '.join(self.words)}`").replace("{host}", "HOST").replace("{user}", "USER")


def _step(line: str, **more: object) -> Step:
    return Step(tuple(line.split()), **more)  # type: ignore[arg-type]


# In this order, on one store; what later ones need earlier ones leave.
STEPS: tuple[Step, ...] = (
    _step("info", says="overlay2"),
    _step("drivers", says="overlay2"),
    _step("import -q own.tar app:1"),
    _step("import -q given given:1", label="import a directory with files of others"),
    _step("load -q -i many.tar", label="load an image with files of many owners", refused=("without",)),
    _step("load -q --squash-owners -i many.tar", label="load --squash-owners", says="many"),
    _step("images", says="app"),
    _step("tag app:1 other:1"),
    _step("history app:1", says="import"),
    _step("inspect app:1", says="sha256:"),
    _step("cat app:1:/etc/passwd", says="An application"),
    _step("ls app:1:/", says="etc"),
    _step("find app:1 -name passwd", says="/etc/passwd"),
    _step("save -q -o out.tar app:1"),
    _step("push -q app:1 oci:layout:1"),
    _step("pull -q oci:layout:1 again:1"),
    _step("copy -q oci:layout:1 oci-archive:copied.tar:1"),
    _step("login -u {user} --password-stdin {host}", given=PASSWORD),
    _step("push -q many:1 {host}/many:1"),
    _step("push -q --compression estargz app:1 {host}/lazy:1"),
    _step("pull -q {host}/many:1", label="pull {host}/IMAGE with many owners"),
    _step("tags {host}/many", says="1"),
    _step("attach -q --artifact-type application/x-note {host}/many:1 note"),
    _step("referrers {host}/many:1", says="x-note"),
    _step("inspect docker://{host}/many:1", says="sha256:"),
    _step("mount --lazy --name lazy {host}/lazy:1 tree"),
    _step("umount lazy"),
    _step("rm lazy"),
    _step("delete {host}/many:1"),
    _step("logout {host}"),
    _step("run --rm app:1 sh -c id", says="uid=0"),
    _step("run --rm -u app many:1 id -u", label="run -u USER", says="1000", refused=("without",), status=125),
    _step("run --rm -v {home}/given:/given app:1 cat /given/own", label="run -v DIR:TARGET", says="own"),
    _step("run --rm --network host app:1 true"),
    *(
        _step(f"--driver {driver} run --rm app:1 sh -c rm~/etc/passwd", label=f"--driver {driver} run")
        for driver in ("fuse", "aufs", "vfs")
    ),
    _step("create --name c app:1 sleep 600"),
    _step("start c"),
    _step("ps", says="Up"),
    _step("exec c id", says="uid=0"),
    _step("cp note c:/note", label="cp into a running container"),
    _step("cp given c:/given", label="cp of a directory with files of others"),
    _step("cp c:/etc/passwd out", label="cp out of a running container"),
    _step("diff c", says="A /note"),
    _step("commit -q c committed:1"),
    _step("export -o exported.tar c", label="export of a running container"),
    _step("stop -t 1 c"),
    _step("start c", label="start again"),
    _step("kill c"),
    _step("cp note c:/note", label="cp into a container at rest"),
    _step("rm c"),
    _step("run -d --name d -u app many:1 sleep 600", label="run -d -u USER", alone=("with ranges", "root")),
    _step("rm -f d", label="rm -f of a process of another id", alone=("with ranges", "root")),
    _step("run -d --name e app:1 sh -c echo~said;exit~3", label="run -d"),
    _step("wait e", says="3"),
    _step("logs e", says="said"),
    _step("rm e"),
    _step("mount --name m app:1 tree", label="mount, no driver named"),
    _step("ps", label="ps of a mount", says="mounted at"),
    _step("umount tree"),
    _step("rm m"),
    _step(
        "--driver overlay2 mount --name m app:1 tree", label="--driver overlay2 mount",
        refused=("with ranges", "without"),
    ),
    _step("umount m", alone=("root",), label="umount of --driver overlay2 mount"),
    _step("mount --foreground --name f app:1 tree", label="mount --foreground, then SIGINT"),
    _step("rm f"),
    _step("unshare id", says="uid=0"),
    _step("unshare sh -c {layerfs}~mount~--name~u~app:1~tree&&ls~tree/etc", label="mount in unshare",
          says="passwd", alone=("with ranges", "without")),
    _step("ps -a", label="ps after unshare", says="Created", alone=("with ranges", "without")),
    _step("du", says="Images"),
    _step("check"),
    _step("check --repair"),
    _step("gc --dry-run"),
    _step("gc"),
    _step("rmi again:1"),
    _step("create --name k app:1 true", label="create once more"),
    _step("convert --to fuse k"),
    _step("convert --to vfs k"),
    _step("diff k", label="diff of what was converted"),
    _step("rm k"),
    _step("completion bash", says="complete"),
    _step("unshare rm -rf store", label="unshare rm -rf ROOT"),
)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--kind", choices=KINDS, action="append", help="of user; all three when left out")


def run(arguments: argparse.Namespace, tell: Callable[[str], None]) -> Section:
    found = results(arguments.kind or KINDS, STEPS, tell)
    rows = [
        (step.title, *(found[kind][place] for kind in KINDS if kind in found))
        for place, step in enumerate(STEPS)
        if any(found[kind][place] != "n.a." for kind in found)
    ]
    cells = [cell for row in rows for cell in row[1:]]
    used = {next(word for word in step.words if word in COMMANDS) for step in STEPS if step.alone}
    left = sorted(set(COMMANDS) - used)
    return Section(
        "Ordinary users",
        "python -m tests.reliability users",
        ("command", *(f"user {kind}" if kind != "root" else kind for kind in KINDS if kind in found)),
        tuple(rows),
        (
            f"Of {len(cells) - _count(cells, 'n.a.')} {cells.count('works')} work,"
            f" {_count(cells, 'clear error')} are refused with an error that says what to do,"
            f" {_count(cells, _FAILURE)} fail. Users are real"
            " ones of the machine, with and without lines in /etc/subuid and /etc/subgid; the registry is"
            " Debian's docker-registry, which asks for a password."
            + (f" Not run: {', '.join(left)}." if left else ""),
        ),
    )


def _count(cells: Sequence[str], word: str) -> int:
    return sum(cell.startswith(word) for cell in cells)


def results(kinds: Sequence[str], steps: Sequence[Step], tell: Callable[[str], None]) -> dict[str, list[str]]:
    """Do the steps as each kind of user; give what the table says of each."""
    found: dict[str, list[str]] = {}
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        directory = Path(name)
        _make_inputs(directory)
        host = ""
        if installed():
            registry = Registry(directory / "registry", auth=htpasswd(directory / "registry"))
            host = stack.enter_context(registry).host
        for kind in kinds:
            with _user(kind) as user:
                _give(user, directory)
                found[kind] = []
                for step in steps:
                    found[kind].append(_result(user, kind, step, host))
                    if _FAILURE in found[kind][-1]:
                        tell(f"{kind}: {step.title}: {found[kind][-1]}")
                tell(f"{kind}: {sum(cell == 'works' for cell in found[kind])} of {len(steps)} work")
    return found


class _Root(Login):
    """Root, with a home of its own below a directory."""

    def command(self, *words: object) -> list[str]:
        variables = [
            f"PYTHONPATH={ROOT}:{ROOT / 'drivers'}",
            f"HOME={self.home}",
            f"PATH={os.environ['PATH']}",
        ]
        return ["env", "-i", "-C", str(self.home), *variables, *map(str, words)]


@contextlib.contextmanager
def _user(kind: str) -> Iterator[Login]:
    home = Path(f"/tmp/layerfs-campaign-{os.getpid()}")
    if kind != "root":
        with login(_UID, home, ranges=_RANGES if kind == "with ranges" else "") as made:
            yield made
        return
    home.mkdir(0o700)
    try:
        yield _Root(0, home, os.getpid(), has_ranges=False)
    finally:
        shutil.rmtree(home)


def _make_inputs(directory: Path) -> None:
    tree = hosttree.build(directory / "tree")
    for name, options in (("own.tar", ["--owner=0", "--group=0"]),):
        subprocess.run(["tar", *options, "-C", str(tree), "-cf", str(directory / name), "."], check=True)
    (tree / "somebody").write_text("x")
    os.chown(tree / "somebody", 1042, 43)
    with Store.open(directory / "store", driver="vfs") as store:
        store.import_tree(tree, "many:1")
        store.save(["many:1"], directory / "many.tar")
    (directory / "given").mkdir()
    (directory / "given/others").write_text("another's\n")
    (directory / "given/own").write_text("own\n")
    (directory / "note").write_text("a note\n")


def _give(user: Login, directory: Path) -> None:
    for name in ("own.tar", "many.tar", "note"):
        shutil.copy(directory / name, user.home / name)
        os.chown(user.home / name, user.uid, user.uid)
    shutil.copytree(directory / "given", user.home / "given")
    for name in ("given", "given/own"):
        os.chown(user.home / name, user.uid, user.uid)
    (user.home / "tree").mkdir()
    os.chown(user.home / "tree", user.uid, user.uid)


def _result(user: Login, kind: str, step: Step, host: str) -> str:
    words = [
        word.format(host=host, layerfs=_LAYERFS, home=user.home, user=USER).replace("~", " ")
        for word in step.words
    ]
    if kind not in step.alone:
        return "n.a."
    if not host and any("{host}" in word for word in step.words):
        return "n.a.: docker-registry is not installed"
    before = ["timeout", "--signal=INT", "--preserve-status", "2"] if "--foreground" in words else []
    try:
        done = user.run(*before, *user.layerfs_words(*words), check=False, input=step.given, timeout=_SECONDS)
    except subprocess.TimeoutExpired:
        return f"{_FAILURE}: no end after {_SECONDS} s"
    lines = done.stderr.splitlines() or [""]
    error = next((line for line in lines if line.startswith("layerfs: ")), "")
    if kind in step.refused:
        clear = done.returncode in (1, 2, 125) and error and lines[-1].startswith("hint: ")
        return f"clear error: {error[9:60]}..." if clear else f"{_FAILURE}: {done.returncode} {done.stderr}"
    if done.returncode != 0:
        return f"{_FAILURE}: status {done.returncode}: {error or lines[-1]}"
    if step.says not in done.stdout:
        return f"{_FAILURE}: it says {done.stdout[:100]!r}"
    return "works"
