"""The whole contract as one class."""

from __future__ import annotations

from layerfs.testing.content import CasesContract, ContentContract
from layerfs.testing.life import LifeContract
from layerfs.testing.properties import PropertiesContract


class DriverContract(LifeContract, ContentContract, CasesContract, PropertiesContract):
    """Everything that a driver promises; see `ContractBase` for what an author sets."""
