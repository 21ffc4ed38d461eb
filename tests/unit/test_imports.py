"""Holds the direction of imports that DESIGN.md section 1 fixes, by reading every module's syntax tree."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Lowest first. A module imports from its own row or from rows before it; drivers are listed apart below.
ROWS: list[set[str]] = [
    {"errors", "failpoints"},
    {
        "linux",
        "value",
        "digest",
        "reference",
        "compression",
        "files",
        "forking",
        "progress",
        "liveness",
        "reserve",
        "flushing",
        "hashing",
        "worker",
        "similar",
        "subids",
        "streams",
    },
    {"mount", "mount_options", "mounting", "fusermount", "outside", "oci"},
    {"registry"},
    {
        "tree",
        "driver",
        "directories",
        "stacked_layers",
        "overlay_layers",
        "blobs",
        "incoming",
        "records",
        "database",
        "leases",
        "signals",
        "ledger",
    },
    {"seekable", "layer_table", "contents", "assembly", "filling", "unpacking", "layers"},
    {
        "images",
        "indexes",
        "instructions",
        "committing",
        "capture",
        "names",
        "copying",
        "reading",
        "containers",
        "runtime",
        "garbage",
        "leftovers",
        "quarantine",
        "rebuilding",
        "root",
        "naming",
        "removing",
        "check",
        "transports",
        "plugins",
    },
    {"store_ends", "usage", "lazy", "transferring", "relocating", "converting", "recovery"},
    {"store"},
    {"fsspec"},
    {"testing"},
    {"cli"},
]
HEIGHT = {name: height for height, row in enumerate(ROWS) for name in row}
DRIVERS_MAY_IMPORT = {
    "driver",
    "directories",
    "overlay_layers",
    "stacked_layers",
    "mount",
    "mounting",
    "fusermount",
    "forking",
    "outside",
    "tree",
    "linux",
    "value",
    "files",
    "errors",
    "failpoints",
}


def sources(directory: str) -> list[Path]:
    return sorted((ROOT / directory).rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line, full module name) of every import, those inside functions and TYPE_CHECKING too."""
    package = module_name(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, node.module] if node.module else base)
            if module == "layerfs":
                yield from ((node.lineno, f"layerfs.{alias.name}") for alias in node.names)
            else:
                yield node.lineno, module


def part_of(module: str) -> str | None:
    """Name the part of the library (`layerfs.tree.diff` is of `tree`), None for other packages."""
    parts = module.split(".")
    return parts[1] if parts[0] == "layerfs" and len(parts) > 1 else None


@pytest.mark.parametrize("path", sources("layerfs"), ids=module_name)
def test_imports_point_one_way(path: Path) -> None:
    name = module_name(path)
    if name in ("layerfs", "layerfs.__main__"):
        return  # the package itself names everything, lazily
    own = part_of(name)
    assert own in HEIGHT, f"{name} stands in no row: say in tests/unit/test_imports.py where it belongs"
    for line, module in imported(path):
        other = part_of(module)
        if other is None or other.startswith("__"):
            continue
        assert other in HEIGHT, f"{path}:{line}: {module} stands in no row"
        assert HEIGHT[other] <= HEIGHT[own], f"{path}:{line}: {own} must not import {other}"


@pytest.mark.parametrize("path", sources("layerfs"), ids=module_name)
def test_the_library_imports_no_driver(path: Path) -> None:
    for line, module in imported(path):
        assert not module.startswith("layerfs_"), f"{path}:{line}: {module}"


@pytest.mark.parametrize("path", sources("drivers"), ids=module_name)
def test_a_driver_imports_only_the_contract_and_what_it_stands_on(path: Path) -> None:
    for line, module in imported(path):
        if module == "layerfs" or module.startswith("layerfs."):
            assert part_of(module) in DRIVERS_MAY_IMPORT, f"{path}:{line}: {module}"


@pytest.mark.parametrize("path", sources("layerfs"), ids=module_name)
def test_only_the_command_line_prints_exits_or_reads_the_environment(path: Path) -> None:
    # A URL has no other caller than its user, as a command line has none.
    if module_name(path).startswith(("layerfs.cli", "layerfs.__main__", "layerfs.fsspec")):
        return
    for node in ast.walk(ast.parse(path.read_bytes())):
        match node:
            case ast.Call(func=ast.Name(id="print" | "exit" | "quit" | "input")):
                found = node.func.id  # type: ignore[attr-defined]
            case ast.Attribute(value=ast.Name(id="os"), attr="environ" | "environb" | "getenv"):
                found = f"os.{node.attr}"
            case ast.Call(func=ast.Attribute(value=ast.Name(id="sys"), attr="exit")):
                found = "sys.exit"
            case _:
                continue
        raise AssertionError(f"{path}:{node.lineno}: {found} belongs to cli/")


@pytest.mark.parametrize("path", sources("layerfs") + sources("drivers"), ids=module_name)
def test_every_file_opens_with_a_sentence(path: Path) -> None:
    docstring = ast.get_docstring(ast.parse(path.read_bytes()))
    assert docstring, f"{path} has no docstring"
    assert docstring.splitlines()[0].rstrip().endswith((".", ":", ";", ",")) or "\n" in docstring
