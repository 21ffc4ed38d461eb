"""Kinds of changes, each a script that runs in a directory of its own with the same things in it before."""

from __future__ import annotations

from typing import NamedTuple

# The directory before, in a lower layer.
LOWER = """\
mkdir -p sub/deep empty big/1 big/2 big/3 flip/dir hid/gone_folder hid/opaque
echo file > file; echo two > two; echo same > same; echo deep > sub/deep/file; echo s > sub/s
echo m > sub/mode
ln -s file link; ln -s sub folder_link; echo hard > hard1; ln hard1 hard2; mkfifo pipe
mknod device c 1 3
for a in 1 2 3; do for b in 1 2 3; do echo $b > big/$a/$b; done; done
echo in > flip/dir/in; echo y > flip/file; echo gone > hid/gone; echo 1 > hid/gone_folder/file
echo old > hid/opaque/old
cp /bin/true capable; setcap cap_net_raw+ep capable
"""
# A layer on it, which hides some of it; the container's own layer comes above.
MIDDLE = """\
rm hid/gone; rm -r hid/gone_folder; rm -r hid/opaque; mkdir hid/opaque; echo new > hid/opaque/new
touch -d 2001-01-01 two; chmod 700 sub/mode; echo middle > sub/middle; mkdir -p late/below
echo late > late/below/file
"""


class Case(NamedTuple):
    """One kind of change.

    `ours` are the lines that layerfs prints besides docker's, and `why` docker does not. `with_links` are
    those of a driver that keeps hard links of lower layers together; overlayfs parts them at the first write.
    """

    name: str
    script: str
    ours: tuple[str, ...] = ()
    why: str = ""
    with_links: tuple[str, ...] = ()


_XATTRS = "docker compares no xattrs but security.capability"
_TICK = "docker compares sizes and times, not content"

CASES = (
    Case("nothing", "true"),
    Case("read", "cat file link sub/deep/file hard1 > /dev/null; ls -R . > /dev/null"),
    Case("touched", "touch file"),
    Case("access time alone", "touch -a file"),
    Case("touched with its own time", "touch -r file file"),
    Case("mode", "chmod 600 file"),
    Case("mode set to what it was", "chmod 644 file"),
    Case("setuid", "chmod 4755 file"),
    Case("owner", "chown 5:5 file"),
    Case("owner set to what it was", "chown 0:0 file"),
    Case("appended", "echo more >> file"),
    Case("written again with the same bytes", "echo same > same"),
    Case("replaced by a rename", "echo new > n; mv n file"),
    Case("truncated", "truncate -s 0 file"),
    Case("same size", "truncate -s 0 file; truncate -s 5 file"),
    Case(
        "same size and time",
        "touch -r file ref; echo FILE > file; touch -r ref file; rm ref",
        ("C .", "C file"),
        _TICK,
    ),
    Case("removed", "rm file"),
    Case("removed what a middle layer changed", "rm sub/mode"),
    Case("removed and made again", "rm file; echo again > file"),
    Case("empty directory removed", "rmdir empty"),
    Case("empty directory removed and made again", "rmdir empty; mkdir empty"),
    Case("tree removed", "rm -r big"),
    Case("part of a tree removed", "rm -r big/2"),
    Case("tree removed and made again with another file", "rm -r big; mkdir big; echo n > big/n"),
    Case("tree removed and made again with one of its files", "rm -r big; mkdir -p big/1; echo n > big/1/1"),
    Case("directory emptied", "rm -r big/*"),
    Case("everything removed", "rm -r ./*"),
    Case("file moved", "mv file moved"),
    Case("file moved elsewhere", "mv file big/moved"),
    Case("directory moved", "mv sub sub2"),
    Case("directory moved elsewhere", "mv sub big/sub"),
    Case("directory moved and back", "mv sub sub2; mv sub2 sub"),
    Case("directory moved that has lower layers of two ages", "mv late later; mv sub late"),
    Case("files swapped", "mv file t; mv two file; mv t two"),
    Case("directories swapped", "mv sub t; mv big sub; mv t big"),
    Case("directory replaced by another", "rm -r sub; mv big sub"),
    Case("new directory", "mkdir new"),
    Case("new tree", "mkdir -p new/a/b; echo x > new/a/b/f"),
    Case("new file deep below", "echo x > sub/deep/new"),
    Case("file made and removed", "echo x > temporary; rm temporary; mkdir t; rmdir t"),
    Case("file made and removed in a lower directory", "echo x > sub/temporary; rm sub/temporary"),
    Case("file to directory", "rm flip/file; mkdir flip/file; echo z > flip/file/z"),
    Case("directory to file", "rm -r flip/dir; echo z > flip/dir"),
    Case("file to symlink", "rm flip/file; ln -s nowhere flip/file"),
    Case("directory to symlink", "rm -r flip/dir; ln -s file flip/dir"),
    Case("symlink to directory", "rm folder_link; mkdir folder_link; echo 1 > folder_link/deep"),
    Case("symlink to file", "rm link; echo 1 > link"),
    Case("file to fifo", "rm file; mkfifo file"),
    Case("symlink to somewhere else", "ln -sfn two link"),
    Case("symlink made again", "rm link; ln -s file link"),
    Case("symlink's owner", "chown -h 3:3 link"),
    Case("symlink's time", "touch -h link"),
    Case("new symlinks", "ln -s two newlink; ln -s nowhere dangling"),
    Case("written through a symlink", "echo x >> link"),
    Case("written through a symlink to a directory", "echo x > folder_link/new; chown 9:9 folder_link"),
    Case("hard link added", "ln file hard"),
    Case("hard link added elsewhere", "ln file big/hard"),
    Case("hard link added and written", "ln file hard; echo x >> hard"),
    Case("one of two hard links written", "echo x >> hard1", with_links=("C hard2",)),
    Case("one of two hard links removed", "rm hard1"),
    Case("one of two hard links changed its mode", "chmod 600 hard2", with_links=("C hard1",)),
    Case("third name for two hard links", "ln hard1 hard3"),
    Case("hard link over another file", "ln -f two file"),
    Case("new file with two names", "echo x > new1; ln new1 new2"),
    Case("new fifo", "mkfifo newpipe"),
    Case("fifo's mode", "chmod 600 pipe"),
    Case("new devices", "mknod newdevice c 1 5; mknod block b 7 0"),
    Case("device's mode", "chmod 600 device"),
    Case("device of another number", "rm device; mknod device c 1 5"),
    Case("new sparse file", "truncate -s 10M sparse"),
    Case("file's xattr", "setfattr -n user.a -v 1 file", ("C .", "C file"), _XATTRS),
    Case("directory's xattr", "setfattr -n user.a -v 1 sub", ("C .", "C sub"), _XATTRS),
    Case("ACL that leaves the mode", "setfacl -m u:7:r file", ("C .", "C file"), _XATTRS),
    Case("ACL that changes the mode", "setfacl -m u:7:rwx file"),
    Case("default ACL", "setfacl -d -m u:7:r sub", ("C .", "C sub"), _XATTRS),
    Case("file capability given", "setcap cap_net_raw+ep file"),
    Case("file capability changed", "setcap cap_chown+ep capable"),
    Case("file capability taken", "setcap -r capable"),
    Case("file capability given and taken", "setcap cap_net_raw+ep file; setcap -r file"),
    Case("directory's mode", "chmod 700 sub"),
    Case("directory's mode set to what it was", "chmod 755 sub"),
    Case("directory's sticky bit", "chmod 1777 sub"),
    Case("directory's owner", "chown 4:4 sub"),
    Case("directory's time", "touch sub; touch -d 1999-01-01 big"),
    Case("directory's mode and a file in it", "chmod 700 sub; echo x > sub/new"),
    Case("mode deep below", "chmod 600 sub/deep/file"),
    Case("made again what a middle layer removed", "touch hid/gone; mkdir -p hid/gone_folder/g"),
    Case("changed in an opaque directory", "echo x > hid/opaque/new; echo x > hid/opaque/old"),
    Case("opaque directory removed", "rm -r hid/opaque"),
    Case("opaque directory made again", "rm -r hid/opaque; mkdir hid/opaque; echo x > hid/opaque/old"),
    Case("odd names", 'touch -- "a b" "tab	x" "\\\\back" é .dot -dash .wh_ok; mkdir a; touch a/z a-b a.b'),
)  # fmt: skip


def folder(case: Case) -> str:
    """Name the directory of a case, absolute in the container."""
    return "/c/" + case.name.replace(" ", "_").replace("'", "")


def lower_script() -> str:
    """Make all directories as they are before."""
    made = "".join(f"cp -a /template {folder(case)}\n" for case in CASES)
    return f"set -eu; mkdir /template /c; cd /template\n{LOWER}\n{made}rm -r /template\n"


def middle_script() -> str:
    """Change all directories in a layer between."""
    return "set -eu\n" + "".join(f"cd {folder(case)}\n{MIDDLE}\n" for case in CASES)


def change_script() -> str:
    """Make every case's change; a case that fails fails the script."""
    return "set -eu\n" + "".join(f"cd {folder(case)}\n{case.script}\n" for case in CASES)


def lines_of(case: Case, lines: list[str]) -> list[str]:
    """Pick the lines below a case's directory, with paths relative to it, sorted."""
    prefix = folder(case)
    found = []
    for line in lines:
        letter, path = line.split(" ", 1)
        if path == prefix:
            found.append(f"{letter} .")
        elif path.startswith(prefix + "/"):
            found.append(f"{letter} {path.removeprefix(prefix + '/')}")
    return sorted(found)
