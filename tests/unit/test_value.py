"""Frozen values behave as frozen dataclasses do, also towards `dataclasses` itself."""

from __future__ import annotations

import dataclasses
import inspect
import pickle
import subprocess
import sys

import pytest

from layerfs.value import field, fields, frozen, replace


@frozen
class Base:
    """A base without attributes, as `Mount` is."""


@frozen
class Place(Base):
    """One with all that an attribute can say."""

    name: str
    depth: int = 0
    labels: dict[str, str] = field(default_factory=dict, hash=False)
    raw: bytes = field(default_factory=bytes, repr=False)
    owner: object = field(default_factory=object, repr=False, compare=False)


@frozen
class Deeper(Place):
    """A further attribute after those of the base."""

    further: int = 7


@frozen(kw_only=True)
class Settings:
    """Checked when it is made."""

    tty: bool = False
    user: str

    def __post_init__(self) -> None:
        if not self.user:
            raise ValueError("no user")


def test_arguments_go_by_place_and_by_name_and_defaults_fill_the_rest() -> None:
    place = Deeper("a", 2, raw=b"x")
    assert (place.name, place.depth, place.labels, place.raw, place.further) == ("a", 2, {}, b"x", 7)
    assert Place("a").labels is not Place("a").labels


@pytest.mark.parametrize(
    ("given", "named", "message"),
    [
        ((), {}, "lacks the argument 'name'"),
        (("a", 1, {}, b"", 0, 7), {}, "takes 5 arguments by place"),
        (("a",), {"name": "b"}, "cannot take the argument 'name'"),
        (("a",), {"size": 1}, "cannot take the argument 'size'"),
    ],
)
def test_wrong_arguments_are_refused(
    given: tuple[object, ...], named: dict[str, object], message: str
) -> None:
    with pytest.raises(TypeError, match=f"Place {message}"):
        Place(*given, **named)  # type: ignore[arg-type]


def test_attributes_by_name_only_may_stand_in_any_order_and_are_checked() -> None:
    assert Settings(user="root").tty is False
    with pytest.raises(TypeError, match="0 arguments by place"):
        Settings(True)  # type: ignore[misc]
    with pytest.raises(ValueError, match="no user"):
        replace(Settings(user="root"), user="")


def test_nothing_of_a_value_changes_and_nothing_is_added() -> None:
    place = Place("a")
    with pytest.raises(dataclasses.FrozenInstanceError, match="'name' cannot change"):
        place.name = "b"  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        del place.name
    with pytest.raises(AttributeError):
        object.__setattr__(place, "size", 1)


def test_values_are_equal_and_hash_alike_when_what_counts_is_equal() -> None:
    assert Place("a") == Place("a")
    assert hash(Place("a", labels={"x": "y"})) == hash(Place("a"))
    assert Place("a", labels={"x": "y"}) != Place("a")
    assert Place("a") != Deeper("a")
    assert Place("a") != "a"


def test_a_value_shows_what_it_is_made_of() -> None:
    assert repr(Place("a", raw=b"x")) == "Place(name='a', depth=0, labels={})"


def test_a_changed_value_is_a_new_one() -> None:
    place = Deeper("a", 1)
    assert replace(place, name="b", further=8) == Deeper("b", 1, owner=place.owner, further=8)
    with pytest.raises(TypeError, match="'size'"):
        replace(place, size=1)


def test_a_value_can_be_matched_and_pickled() -> None:
    match Place("a", 3):
        case Place(name, depth):
            assert (name, depth) == ("a", 3)
    assert pickle.loads(pickle.dumps(Place("a", labels={"x": "y"}))) == Place("a", labels={"x": "y"})
    assert pickle.loads(pickle.dumps(Settings(user="root"))) == Settings(user="root")


def test_to_dataclasses_a_value_is_one_of_theirs() -> None:
    place = Deeper("a")
    assert dataclasses.is_dataclass(place)
    assert [each.name for each in dataclasses.fields(place)] == [each.name for each in fields(place)]
    assert dataclasses.replace(place, depth=1) == replace(place, depth=1)
    assert dataclasses.asdict(Settings(user="root")) == {"tty": False, "user": "root"}


def test_a_dataclass_can_derive_from_a_value() -> None:
    @dataclasses.dataclass(frozen=True, slots=True)
    class Mine(Base):
        path: str
        options: tuple[str, ...] = ()

    assert Mine("/a") == Mine("/a")
    assert dataclasses.replace(Mine("/a"), options=("ro",)).options == ("ro",)
    assert isinstance(Mine("/a"), Base)


def test_a_class_says_how_it_is_made() -> None:
    shown = str(inspect.signature(Deeper))
    assert shown == (
        "(name: 'str', depth: 'int' = 0, labels: 'dict[str, str]' = <made anew>, raw: 'bytes' = <made anew>,"
        " owner: 'object' = <made anew>, further: 'int' = 7) -> None"
    )
    assert str(inspect.signature(Settings)) == "(*, tty: 'bool' = False, user: 'str') -> None"

    @dataclasses.dataclass(frozen=True)
    class Mine(Base):
        path: str

    assert list(inspect.signature(Mine).parameters) == ["path"]


def test_making_one_imports_neither_dataclasses_nor_inspect() -> None:
    code = "import sys, layerfs.mount; print({'dataclasses', 'inspect'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
