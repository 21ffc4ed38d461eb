"""Layers on which other programs disagree, each with the one tree that layerfs makes of it."""

from __future__ import annotations

from typing import Final, NamedTuple

from layerfs.testing.items import (
    Item,
    directory,
    file,
    hard_link,
    implied,
    node,
    opaque,
    symlink,
    whiteout,
)

OLD: Final = 1_500_000_000_000_000_000
ACL: Final = (  # user::rw- user:1000:r-- group::r-- mask::r-- other::r--
    b"\x02\x00\x00\x00\x01\x00\x06\x00\xff\xff\xff\xff\x02\x00\x04\x00\xe8\x03\x00\x00\x04\x00\x04\x00"
    b"\xff\xff\xff\xff\x10\x00\x04\x00\xff\xff\xff\xff\x20\x00\x04\x00\xff\xff\xff\xff"
)
DEFAULT_ACL: Final = (  # user::rwx user:1000:rwx group::r-x mask::rwx other::---
    b"\x02\x00\x00\x00\x01\x00\x07\x00\xff\xff\xff\xff\x02\x00\x07\x00\xe8\x03\x00\x00\x04\x00\x05\x00"
    b"\xff\xff\xff\xff\x10\x00\x07\x00\xff\xff\xff\xff\x20\x00\x00\x00\xff\xff\xff\xff"
)
CAPABILITY: Final = b"\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
DEEP: Final = b"/".join([b"d" * 200] * 30)


class Case(NamedTuple):
    """A layer on top of others; `tree` is what is seen then, None when the layer must be refused."""

    name: str
    lower: tuple[tuple[Item, ...], ...]
    layer: tuple[Item, ...]
    tree: tuple[Item, ...] | None


def _parents(path: bytes) -> tuple[Item, ...]:
    parts = path.split(b"/")
    return tuple(directory(b"/".join(parts[:n])) for n in range(1, len(parts) + 1))


_D: Final = (directory(b"d"), file(b"d/one", b"1"), file(b"d/two", b"2"))

_NODES: Final = (
    node(b"null", "character", (1, 3), mode=0o666),
    node(b"disk", "block", (8, 1), mode=0o660),
    node(b"p", "fifo"),
)

CASES: Final = (
    Case("whiteout_before_its_sibling", (_D,), (directory(b"d"), whiteout(b"d/one"), file(b"d/one", b"new")),
         (directory(b"d"), file(b"d/one", b"new"), file(b"d/two", b"2"))),
    Case("whiteout_after_its_sibling", (_D,), (directory(b"d"), file(b"d/one", b"new"), whiteout(b"d/one")),
         (directory(b"d"), file(b"d/one", b"new"), file(b"d/two", b"2"))),
    Case("whiteout_then_a_directory_of_the_name", (_D,), (whiteout(b"d"), directory(b"d"), file(b"d/new")),
         (directory(b"d"), file(b"d/new"))),
    Case("a_directory_then_a_whiteout_of_its_name", (_D,), (directory(b"d"), file(b"d/new"), whiteout(b"d")),
         (directory(b"d"), file(b"d/new"))),
    Case("a_directory_its_whiteout_and_then_its_children", (_D,),
         (directory(b"d"), whiteout(b"d"), file(b"d/new")), (directory(b"d"), file(b"d/new"))),
    Case("a_whiteout_of_a_directory_whose_child_comes_without_it", (_D,), (whiteout(b"d"), file(b"d/new")),
         (implied(b"d"), file(b"d/new"))),
    Case("opaque_before_the_children", (_D,), (directory(b"d"), opaque(b"d"), file(b"d/one", b"new")),
         (directory(b"d"), file(b"d/one", b"new"))),
    Case("opaque_after_the_children", (_D,), (directory(b"d"), file(b"d/one", b"new"), opaque(b"d")),
         (directory(b"d"), file(b"d/one", b"new"))),
    Case("opaque_in_a_directory_without_an_entry",
         ((directory(b"d", mode=0o1711, uid=5, gid=6, mtime_ns=OLD), file(b"d/one")),),
         (opaque(b"d"), file(b"d/new")),
         (directory(b"d", mode=0o1711, uid=5, gid=6, mtime_ns=OLD), file(b"d/new"))),
    Case("opaque_at_the_root", (_D, (file(b"top"),)), (opaque(b""), file(b"new")), (file(b"new"),)),
    Case("opaque_above_children_whose_parents_have_no_entry", ((directory(b"a"), directory(b"a/b"),
          file(b"a/x")),),
         (file(b"a/b/c/new"), directory(b"a"), opaque(b"a")),
         (directory(b"a"), implied(b"a/b"), implied(b"a/b/c"), file(b"a/b/c/new"))),
    Case("opaque_in_a_directory_two_layers_up", (_D, (file(b"d/three"),)), (opaque(b"d"),),
         (directory(b"d"),)),
    Case("whiteout_of_nothing", (_D,),
         (whiteout(b"nowhere"), whiteout(b"d/nowhere"), whiteout(b"no/where")), _D),
    Case("whiteout_in_a_base_layer", (), (whiteout(b"x"), whiteout(b"a/x"), opaque(b"")), ()),
    Case("whiteout_of_a_directory", (_D,), (whiteout(b"d"),), ()),
    Case("whiteout_of_what_a_whiteout_hid", (_D, (whiteout(b"d/one"),)), (whiteout(b"d/one"),),
         (directory(b"d"), file(b"d/two", b"2"))),
    Case("a_deleted_file_comes_again", (_D, (whiteout(b"d/one"),)), (file(b"d/one", b"again"),),
         (directory(b"d"), file(b"d/one", b"again"), file(b"d/two", b"2"))),
    Case("a_deleted_directory_comes_again_empty", (_D, (whiteout(b"d"),)), (directory(b"d"),),
         (directory(b"d"),)),
    Case("nameless_whiteout", (_D,), (file(b".wh."),), None),
    Case("whiteout_of_dot", (_D,), (file(b"d/.wh.."),), None),
    Case("whiteout_of_dot_dot", (_D,), (file(b"d/.wh..."),), None),
    Case("aufs_hard_links", (),
         (directory(b".wh..wh.plnk"), file(b".wh..wh.plnk/12.34", b"x"), directory(b".wh..wh.orph"),
          file(b".wh..wh.aufs"), hard_link(b"a", b".wh..wh.plnk/12.34"),
          hard_link(b"b", b".wh..wh.plnk/12.34")),
         (file(b"a", b"x"), hard_link(b"b", b"a"))),
    Case("a_whiteout_that_is_a_directory", (_D,), (directory(b"d/.wh.one"),),
         (directory(b"d"), file(b"d/two", b"2"))),
    Case("a_whiteout_that_is_a_symlink", (_D,), (symlink(b"d/.wh.one", b"x"),),
         (directory(b"d"), file(b"d/two", b"2"))),
    Case("a_whiteout_with_data", (_D,), (file(b"d/.wh.one", b"data"), file(b"after")),
         (directory(b"d"), file(b"d/two", b"2"), file(b"after"))),
    Case("the_times_of_a_parent_whose_child_comes_or_goes",
         ((directory(b"d", mtime_ns=OLD), file(b"d/one"), file(b"d/two")),),
         (whiteout(b"d/one"), file(b"d/new")),
         (directory(b"d", mtime_ns=OLD), file(b"d/two"), file(b"d/new"))),
    Case("a_device_that_would_be_a_whiteout", (_D,), (node(b"d/one", "character", (0, 0)),), None),
    Case("hard_link_within_a_layer", (), (file(b"a", b"x"), hard_link(b"b", b"a"), hard_link(b"c", b"b")),
         (file(b"a", b"x"), hard_link(b"b", b"a"), hard_link(b"c", b"a"))),
    Case("hard_link_to_a_file_of_a_lower_layer", (_D,), (hard_link(b"d/link", b"d/one"),),
         (*_D, hard_link(b"d/link", b"d/one"))),
    Case("hard_link_to_a_file_two_layers_down", (_D, (file(b"x"),)), (hard_link(b"y/link", b"d/two"),),
         (*_D, file(b"x"), implied(b"y"), hard_link(b"y/link", b"d/two"))),
    Case("hard_link_before_its_target", (), (hard_link(b"b", b"a"), file(b"a", b"x")),
         (file(b"a", b"x"), hard_link(b"b", b"a"))),
    Case("hard_link_to_nothing", (_D,), (hard_link(b"b", b"nowhere"),), None),
    Case("hard_link_to_a_deleted_file", (_D,), (whiteout(b"d/one"), hard_link(b"b", b"d/one")), None),
    Case("hard_link_to_a_directory", (_D,), (hard_link(b"b", b"d"),), None),
    Case("hard_link_to_itself", (_D,), (file(b"a", b"x"), hard_link(b"a", b"a")), (*_D, file(b"a", b"x"))),
    Case("hard_link_with_attributes_of_its_own", (),
         (file(b"a", b"x"), Item(b"b", "hard link", target=b"a", mode=0o4777, uid=9, gid=9, mtime_ns=OLD)),
         (file(b"a", b"x"), hard_link(b"b", b"a"))),
    Case("hard_link_to_a_symlink", (), (symlink(b"a", b"x"), hard_link(b"b", b"a")),
         (symlink(b"a", b"x"), hard_link(b"b", b"a"))),
    Case("an_entry_below_a_symlink_of_a_lower_layer",
         ((directory(b"usr"), directory(b"usr/lib"), symlink(b"lib", b"usr/lib")),), (file(b"lib/x", b"x"),),
         (directory(b"usr"), directory(b"usr/lib"), symlink(b"lib", b"usr/lib"), file(b"usr/lib/x", b"x"))),
    Case("a_whiteout_below_a_symlink_of_a_lower_layer",
         ((directory(b"usr"), directory(b"usr/lib"), file(b"usr/lib/x"), symlink(b"lib", b"usr/lib")),),
         (whiteout(b"lib/x"),), (directory(b"usr"), directory(b"usr/lib"), symlink(b"lib", b"usr/lib"))),
    Case("an_entry_below_a_symlink_of_its_own_layer", (),
         (directory(b"usr"), symlink(b"lib", b"usr"), file(b"lib/x", b"x")),
         (directory(b"usr"), symlink(b"lib", b"usr"), file(b"usr/x", b"x"))),
    Case("a_symlink_that_leads_out_as_a_parent", (),
         (symlink(b"out", b"../../../../tmp"), file(b"out/x", b"x")),
         (symlink(b"out", b"../../../../tmp"), implied(b"tmp"), file(b"tmp/x", b"x"))),
    Case("an_absolute_symlink_as_a_parent", (),
         (directory(b"in"), symlink(b"out", b"/in"), file(b"out/x", b"x")),
         (directory(b"in"), symlink(b"out", b"/in"), file(b"in/x", b"x"))),
    Case("absolute_and_dotted_names", (),
         (file(b"/a", b"x"), file(b"./b"), file(b"../../c"), file(b"./d/../e")),
         (file(b"a", b"x"), file(b"b"), file(b"c"), file(b"e"))),
    Case("a_symlink_loop_as_a_parent", (), (symlink(b"a", b"b"), symlink(b"b", b"a"), file(b"a/x")), None),
    Case("a_file_where_a_parent_is_needed", ((file(b"a", b"x"),),), (file(b"a/b", b"y"),),
         (implied(b"a"), file(b"a/b", b"y"))),
    Case("a_file_of_its_own_layer_where_a_parent_is_needed", (), (file(b"a", b"x"), file(b"a/b", b"y")),
         (implied(b"a"), file(b"a/b", b"y"))),
    Case("an_entry_for_the_root", (_D,), (directory(b"./", mode=0o1750, uid=3, gid=4, mtime_ns=OLD),),
         (directory(b"", mode=0o1750, uid=3, gid=4, mtime_ns=OLD), *_D)),
    Case("a_root_that_is_no_directory", (), (file(b"./"),), None),
    Case("missing_parents", (), (file(b"a/b/c", b"x"),),
         (implied(b"a"), implied(b"a/b"), file(b"a/b/c", b"x"))),
    Case("a_path_twice", (), (file(b"a", b"first"), directory(b"b"), file(b"a", b"last"), file(b"b")),
         (file(b"a", b"last"), file(b"b"))),
    Case("a_directory_over_a_directory",
         ((directory(b"d", mode=0o700, xattrs={b"user.old": b"1"}), file(b"d/x")),),
         (directory(b"d", mode=0o2775, gid=7, xattrs={b"user.new": b"2"}),),
         (directory(b"d", mode=0o2775, gid=7, xattrs={b"user.new": b"2"}), file(b"d/x"))),
    Case("a_file_over_a_directory", (_D,), (file(b"d", b"file"),), (file(b"d", b"file"),)),
    Case("a_directory_over_a_file", ((file(b"x", b"file"),),), (directory(b"x"), file(b"x/y")),
         (directory(b"x"), file(b"x/y"))),
    Case("a_directory_over_a_symlink", ((directory(b"to"), file(b"to/kept"), symlink(b"x", b"to")),),
         (directory(b"x"), file(b"x/y")),
         (directory(b"to"), file(b"to/kept"), directory(b"x"), file(b"x/y"))),
    Case("a_symlink_over_a_directory", (_D, (file(b"f"),)), (symlink(b"d", b"f"),),
         (file(b"f"), symlink(b"d", b"f"))),
    Case("a_file_over_a_hard_link", ((file(b"a", b"x"), hard_link(b"b", b"a")),), (file(b"b", b"y"),),
         (file(b"a", b"x"), file(b"b", b"y"))),
    Case("overlayfs_attributes", (_D,),
         (directory(b"d", xattrs={b"trusted.overlay.opaque": b"y", b"user.overlay.opaque": b"y"}),
          file(b"d/f", xattrs={b"trusted.overlay.metacopy": b"", b"trusted.overlay.redirect": b"/x"})),
         (*_D, file(b"d/f"))),
    Case("extended_attributes", (),
         (file(b"f", b"x", xattrs={b"user.empty": b"", b"user.value": b"\x01v", b"trusted.t": b"t"}),
          directory(b"d", xattrs={b"user.d": b"d"}),
          file(b"acl", mode=0o644, xattrs={b"system.posix_acl_access": ACL}),
          directory(b"inherits", mode=0o755, xattrs={b"system.posix_acl_default": DEFAULT_ACL}),
          file(b"inherits/plain"),
          file(b"capable", b"x", mode=0o755, uid=0, xattrs={b"security.capability": CAPABILITY})),
         (file(b"f", b"x", xattrs={b"trusted.t": b"t", b"user.empty": b"", b"user.value": b"\x01v"}),
          directory(b"d", xattrs={b"user.d": b"d"}),
          file(b"acl", mode=0o644, xattrs={b"system.posix_acl_access": ACL}),
          directory(b"inherits", mode=0o755, xattrs={b"system.posix_acl_default": DEFAULT_ACL}),
          file(b"inherits/plain"),
          file(b"capable", b"x", mode=0o755, uid=0, xattrs={b"security.capability": CAPABILITY}))),
    Case("modes_and_owners", (),
         (file(b"setuid", mode=0o4755, uid=1000, gid=50), file(b"setgid", mode=0o2755, gid=50),
          directory(b"tmp", mode=0o1777), file(b"none", mode=0), file(b"far", uid=4294967293, gid=65536)),
         (file(b"setuid", mode=0o4755, uid=1000, gid=50), file(b"setgid", mode=0o2755, gid=50),
          directory(b"tmp", mode=0o1777), file(b"none", mode=0), file(b"far", uid=4294967293, gid=65536))),
    Case("times", (), (file(b"negative", mtime_ns=-1_500_000_001), file(b"zero", mtime_ns=0),
          symlink(b"l", b"x")),
         (file(b"negative", mtime_ns=-1_500_000_001), file(b"zero", mtime_ns=0), symlink(b"l", b"x"))),
    Case("special_files", (_D,),
         (*_NODES, node(b"d/one", "fifo")),
         (*_NODES, directory(b"d"), node(b"d/one", "fifo"), file(b"d/two", b"2"))),
    Case("odd_names", (),
         (file(b"\xff\xfe", b"1"), file(b"new\nline"), file(b"back\\slash"), file(b"blank "), file(b"-rf"),
          file(b"\x01\x7f"), file("größe".encode()), file(b"a,b:c=d"), directory(b"..."), file(b"n" * 255)),
         (file(b"\xff\xfe", b"1"), file(b"new\nline"), file(b"back\\slash"), file(b"blank "), file(b"-rf"),
          file(b"\x01\x7f"), file("größe".encode()), file(b"a,b:c=d"), directory(b"..."), file(b"n" * 255))),
    Case("a_name_of_256_bytes", (), (file(b"n" * 256),), None),
    Case("a_path_longer_than_4096_bytes", (_parents(DEEP),), (file(DEEP + b"/f", b"x"),),
         (*_parents(DEEP), file(DEEP + b"/f", b"x"))),
    Case("an_empty_layer", (_D,), (), _D),
)  # fmt: skip
