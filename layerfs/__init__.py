"""Container file systems as a library: content-addressed layers, copy-on-write mounts, exact diffs.

`Store.open` is the way in. Public names are loaded when they are first used (PEP 562), so that
``import layerfs`` costs nothing by itself.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from layerfs.check.findings import Findings, Problem
    from layerfs.compression import Compression
    from layerfs.containers import Container, Containers
    from layerfs.converting import Converted
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
    from layerfs.garbage import Report
    from layerfs.images import Image, Images
    from layerfs.mount import Bind, Mount, Overlay
    from layerfs.oci.config import ContainerConfig, History, ImageConfig
    from layerfs.oci.descriptor import Descriptor
    from layerfs.oci.index import Index
    from layerfs.oci.manifest import Manifest
    from layerfs.oci.platform import Platform
    from layerfs.outside import Outside
    from layerfs.progress import Progress, Silent
    from layerfs.reading import OpenImage
    from layerfs.reference import Reference
    from layerfs.registry.credentials import Credentials
    from layerfs.registry.settings import Options
    from layerfs.runtime.settings import RunSettings
    from layerfs.seekable.merged import MergedTree
    from layerfs.seekable.overlaying import Node
    from layerfs.store import Info, Store
    from layerfs.transports.packing import Packing
    from layerfs.transports.rewriting import Rewriting
    from layerfs.tree.budget import Budget
    from layerfs.tree.change import Change, ChangeKind
    from layerfs.tree.entry import Entry, Kind
    from layerfs.usage import DiskUsage

__version__ = "0.1.0"

_MODULES = {
    "layerfs.check.findings": ["Findings", "Problem"],
    "layerfs.compression": ["Compression"],
    "layerfs.containers": ["Container", "Containers"],
    "layerfs.converting": ["Converted"],
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
    "layerfs.garbage": ["Report"],
    "layerfs.images": ["Image", "Images"],
    "layerfs.mount": ["Bind", "Mount", "Overlay"],
    "layerfs.oci.config": ["ContainerConfig", "History", "ImageConfig"],
    "layerfs.oci.descriptor": ["Descriptor"],
    "layerfs.oci.index": ["Index"],
    "layerfs.oci.manifest": ["Manifest"],
    "layerfs.oci.platform": ["Platform"],
    "layerfs.outside": ["Outside"],
    "layerfs.progress": ["Progress", "Silent"],
    "layerfs.reading": ["OpenImage"],
    "layerfs.reference": ["Reference"],
    "layerfs.registry.credentials": ["Credentials"],
    "layerfs.registry.settings": ["Options"],
    "layerfs.runtime.settings": ["RunSettings"],
    "layerfs.seekable.merged": ["MergedTree"],
    "layerfs.seekable.overlaying": ["Node"],
    "layerfs.store": ["Info", "Store"],
    "layerfs.transports.packing": ["Packing"],
    "layerfs.transports.rewriting": ["Rewriting"],
    "layerfs.tree.budget": ["Budget"],
    "layerfs.tree.change": ["Change", "ChangeKind"],
    "layerfs.tree.entry": ["Entry", "Kind"],
    "layerfs.usage": ["DiskUsage"],
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
