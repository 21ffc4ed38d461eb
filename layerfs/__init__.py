"""Container file systems as a library: content-addressed layers, copy-on-write mounts, exact diffs.

`Store.open` is the way in. Public names are loaded when they are first used (PEP 562), so that
``import layerfs`` costs nothing by itself.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from layerfs.compression import Compression
    from layerfs.containers import Container
    from layerfs.digest import Digest
    from layerfs.driver import Driver
    from layerfs.errors import (
        ArchiveError,
        AuthenticationError,
        BudgetError,
        DocumentError,
        ExistsError,
        Interrupted,
        InUseError,
        InvalidError,
        LayerError,
        LayerfsError,
        MountError,
        NotFoundError,
        OptionError,
        ProcessError,
        RateLimitError,
        RegistryError,
        StoreError,
        TransportError,
        UnreachableError,
        UnsupportedError,
        UntrustedError,
        VerificationError,
    )
    from layerfs.images import Image
    from layerfs.mount import Bind, Mount, Overlay
    from layerfs.oci.config import ImageConfig
    from layerfs.oci.descriptor import Descriptor
    from layerfs.oci.index import Index
    from layerfs.oci.manifest import Manifest
    from layerfs.oci.platform import Platform
    from layerfs.progress import Progress, Silent
    from layerfs.reading import OpenImage
    from layerfs.reference import Reference
    from layerfs.registry.credentials import Credentials
    from layerfs.store import Store
    from layerfs.tree.budget import Budget
    from layerfs.tree.change import Change, ChangeKind
    from layerfs.tree.entry import Entry, Kind

__version__ = "0.1.0"

_MODULES = {
    "layerfs.compression": ["Compression"],
    "layerfs.containers": ["Container"],
    "layerfs.digest": ["Digest"],
    "layerfs.driver": ["Driver"],
    "layerfs.errors": [
        "ArchiveError",
        "AuthenticationError",
        "BudgetError",
        "DocumentError",
        "ExistsError",
        "InUseError",
        "Interrupted",
        "InvalidError",
        "LayerError",
        "LayerfsError",
        "MountError",
        "NotFoundError",
        "OptionError",
        "ProcessError",
        "RateLimitError",
        "RegistryError",
        "StoreError",
        "TransportError",
        "UnreachableError",
        "UnsupportedError",
        "UntrustedError",
        "VerificationError",
    ],
    "layerfs.images": ["Image"],
    "layerfs.mount": ["Bind", "Mount", "Overlay"],
    "layerfs.oci.config": ["ImageConfig"],
    "layerfs.oci.descriptor": ["Descriptor"],
    "layerfs.oci.index": ["Index"],
    "layerfs.oci.manifest": ["Manifest"],
    "layerfs.oci.platform": ["Platform"],
    "layerfs.progress": ["Progress", "Silent"],
    "layerfs.reading": ["OpenImage"],
    "layerfs.reference": ["Reference"],
    "layerfs.registry.credentials": ["Credentials"],
    "layerfs.store": ["Store"],
    "layerfs.tree.budget": ["Budget"],
    "layerfs.tree.change": ["Change", "ChangeKind"],
    "layerfs.tree.entry": ["Entry", "Kind"],
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
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


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    value: object = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
