"""The driver in drivers/README.md, taken from there, keeps the contract, through its mount alone."""

from __future__ import annotations

import re
from pathlib import Path

from layerfs.driver import Applies, Diffs, Driver, Measures, Seals, Sweeps
from layerfs.testing import DriverContract

README = Path(__file__).parents[2] / "drivers" / "README.md"


def example() -> type[Driver]:
    """Run the README's first block of Python and give the class that it defines."""
    source = re.search(r"^```python\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)
    assert source is not None
    names: dict[str, object] = {"__name__": "layerfs_plain"}
    exec(compile(source[1], str(README), "exec"), names)
    found = names["PlainDriver"]
    assert isinstance(found, type) and issubclass(found, Driver)
    return found


class TestReadmeDriver(DriverContract):
    make_driver = example()
    deepest = 20
    examples = 5


def test_the_example_has_none_of_the_capabilities_so_that_the_fallbacks_are_what_is_tested() -> None:
    driver = example()
    for capability in (Applies, Diffs, Seals, Measures, Sweeps):
        assert not issubclass(driver, capability)
