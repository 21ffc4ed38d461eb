"""Pins the public names of the package."""

from __future__ import annotations

import subprocess
import sys

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
    "Credentials",
    "Descriptor",
    "Digest",
    "DocumentError",
    "Driver",
    "Entry",
    "ExistsError",
    "Image",
    "ImageConfig",
    "InUseError",
    "Index",
    "Interrupted",
    "InvalidError",
    "Kind",
    "LayerError",
    "LayerfsError",
    "Manifest",
    "Mount",
    "MountError",
    "NotFoundError",
    "OpenImage",
    "OptionError",
    "Overlay",
    "Platform",
    "ProcessError",
    "Progress",
    "RateLimitError",
    "Reference",
    "RegistryError",
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
