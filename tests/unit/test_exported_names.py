"""Pins the public names of the package."""

from __future__ import annotations

import collections.abc
import inspect
import pydoc
import re
import subprocess
import sys
import typing

import pytest

import layerfs

PUBLIC = [
    "ArchiveError",
    "AuthenticationError",
    "Bind",
    "Budget",
    "BudgetError",
    "Change",
    "ChangeKind",
    "Compression",
    "Container",
    "ContainerConfig",
    "Containers",
    "Converted",
    "Credentials",
    "Descriptor",
    "Digest",
    "DiskUsage",
    "DocumentError",
    "Driver",
    "Entry",
    "ExistsError",
    "Findings",
    "History",
    "Image",
    "ImageConfig",
    "Images",
    "InUseError",
    "Index",
    "Info",
    "Interrupted",
    "InvalidError",
    "Kind",
    "LayerError",
    "LayerfsError",
    "Manifest",
    "MergedTree",
    "Mount",
    "MountError",
    "Node",
    "NotFoundError",
    "OpenImage",
    "OptionError",
    "Options",
    "Outside",
    "Overlay",
    "Packing",
    "Platform",
    "Problem",
    "ProcessError",
    "Progress",
    "RateLimitError",
    "Reference",
    "RegistryError",
    "Report",
    "Rewriting",
    "RunSettings",
    "Silent",
    "Store",
    "StoreError",
    "TransportError",
    "UnreachableError",
    "UnsupportedError",
    "UntrustedError",
    "VerificationError",
    "__version__",
]


def test_the_public_names_are_these_and_no_others() -> None:
    assert sorted(layerfs.__all__) == sorted(PUBLIC)


def test_every_public_name_loads_from_its_home() -> None:
    for name in layerfs.__all__:
        assert getattr(layerfs, name) is not None
    assert set(layerfs.__all__) - {"__version__"} == set(layerfs._HOMES)


def test_every_public_name_has_a_docstring_that_stands_alone() -> None:
    for name in set(layerfs.__all__) - {"__version__"}:
        assert (getattr(layerfs, name).__doc__ or "").strip(), name


# Aliases, modules, and what the store has for its own parts.
INNER = {"Durability", "Layers", "Path", "contextlib", "AbstractContextManager", "ExitStack", "None"}


@pytest.mark.parametrize("name", ["Store", "Container", "OpenImage"])
def test_what_the_signatures_of_the_main_classes_name_is_public(name: str) -> None:
    shapes = [each for each in vars(getattr(layerfs, name)).values() if inspect.isfunction(each)]
    annotations = [
        str(annotation)
        for shape in shapes
        if not shape.__name__.startswith("_")
        for annotation in shape.__annotations__.values()
    ]
    words = {word for each in annotations for word in re.findall(r"(?<![\w\"'])[A-Z]\w*", each)}
    assert words - {*layerfs.__all__, *dir(typing), *dir(collections.abc), *INNER} == set()


def test_help_shows_what_a_value_is_made_of() -> None:
    shown = pydoc.render_doc(layerfs.Options, renderer=pydoc.plaintext)
    assert "Options(*, tls_verify: 'bool | None' = None, cert_dir: 'Path | None' = None," in shown


def test_an_unknown_name_is_an_attribute_error() -> None:
    try:
        layerfs.nothing_of_this_name  # noqa: B018
    except AttributeError as error:
        assert "nothing_of_this_name" in str(error)
    else:
        raise AssertionError("no AttributeError")


def test_importing_the_package_loads_nothing_else() -> None:
    script = (
        "import sys; before = set(sys.modules); import layerfs; print(*sorted(set(sys.modules) - before))"
    )
    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert printed.stdout.split() == ["layerfs"]
