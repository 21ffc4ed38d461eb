"""Shows layerfs from end to end on a real image, made out of this machine's own programs; see `make demo`.

It makes a root file system, an image of it, mounts the image copy-on-write, runs a command in it, shows the
diff, commits, and writes an OCI layout that any other tool reads. Everything stays below one directory: the
one that is named, or a temporary one that is gone at the end.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from layerfs import Store

SCRIPT = """\
echo $GREETING from $(uname -s), process $$ as $(id -un)
cat /etc/motd
echo '<h1>new</h1>' > /srv/www/index.html
mv /srv/www /srv/site
"""
PROGRAMS = ["sh", "cat", "cp", "echo", "ls", "mkdir", "mv", "rm", "sed", "uname", "id"]


def copy_with_libraries(program: str, root: Path) -> None:
    """Copy a program, and the shared libraries that ldd(1) names, to the same places below `root`."""
    found = shutil.which(program, path="/usr/bin:/bin")
    if found is None:
        return
    listed = subprocess.run(["ldd", found], capture_output=True, text=True, check=False).stdout
    libraries = [word for line in listed.splitlines() for word in line.split() if word.startswith("/")]
    for path in (found, *libraries):
        target = root / path.lstrip("/")
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, target)


def make_root(root: Path) -> None:
    """Fill `root` with a small system: programs, their libraries, users, and the usual directories."""
    for directory in ("bin", "etc", "root", "srv/www", "usr/bin", "var/log"):
        (root / directory).mkdir(parents=True, exist_ok=True)
    (root / "tmp").mkdir()
    (root / "tmp").chmod(0o1777)
    for program in PROGRAMS:
        copy_with_libraries(program, root)
    if not (root / "bin/sh").exists():
        (root / "bin/sh").symlink_to("../usr/bin/sh")
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\nwww:x:33:33:www:/srv/www:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\nwww:x:33:\n")
    (root / "etc/motd").write_text("made of this machine's own programs\n")
    (root / "srv/www/index.html").write_text("<h1>old</h1>\n")
    (root / "var/log/install.log").write_text("nothing to see\n")


def step(text: str) -> None:
    """Say what comes next."""
    print(f"\n== {text}", flush=True)


def main() -> int:
    """Run the whole tour; the exit status is that of the last thing that could fail."""
    if os.geteuid() != 0:
        # An ordinary user owns a namespace of its own, in which mounts and other owners are possible.
        from layerfs.runtime import userns

        userns.enter()
    if len(sys.argv) > 1:
        base = Path(sys.argv[1])
        base.mkdir(parents=True, exist_ok=True)
        status = tour(base)
        print(f"\nThe OCI layout lies in {base / 'layout'}; try: skopeo inspect oci:{base / 'layout'}:2")
        print(f"The store lies in {base / 'store'}; try: layerfs --root {base / 'store'} images")
        return status
    with tempfile.TemporaryDirectory(prefix="layerfs-demo-") as scratch:
        status = tour(Path(scratch))
        print("\nAll of it is gone again; to keep it, name a directory: python examples/demo.py DIR")
        return status


def tour(base: Path) -> int:
    """Do everything below `base`, an existing directory."""
    root, layout, tree = base / "root", base / "layout", base / "mounted"

    step(f"a root file system out of {', '.join(PROGRAMS)}")
    make_root(root)
    files = sum(len(names) for _, _, names in os.walk(root))
    print(f"{files} files in {root}")

    with Store.open(base / "store") as store:
        step("an image of it")
        image = store.import_tree(root, "demo:1", changes=["CMD /bin/sh", "ENV GREETING=hello"])
        print(f"{image.names[0]}  {image.id}  driver {store.driver.name}")

        step("mounted copy-on-write, and written to from outside")
        tree.mkdir()
        container = store.containers.create("demo:1", name="work", command=["/bin/sh", "-c", SCRIPT])
        container.mount(tree)
        try:
            (tree / "etc/motd").write_text("changed through the mount\n")
            (tree / "var/log/install.log").unlink()
            print(f"{tree}: {', '.join(sorted(path.name for path in tree.iterdir()))}")
        finally:
            container.unmount()

        step("a command in a container on the same tree")
        status = container.start()

        step("what changed")
        for change in container.changes():
            print(change.kind.value, "/" + change.entry.path.decode())

        step("committed, and written out as an OCI layout")
        committed = container.commit("demo:2", message="a new motd", author="the demo")
        store.push("demo:2", f"oci:{layout}:2")
        print(f"{committed.names[0]}  {committed.id}  {len(committed.config.diff_ids)} layers")
    return status


if __name__ == "__main__":
    sys.exit(main())
