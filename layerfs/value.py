"""Classes of frozen values: what `dataclasses.dataclass(frozen=True, slots=True)` makes, made quickly.

`dataclasses` imports `inspect` and compiles the methods of every class anew, which took a third of a short
command's time. Here all classes share their methods, and nothing is compiled. To the functions of
`dataclasses`, and as bases of its classes, they are dataclasses nevertheless.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NoReturn, TypeVar, dataclass_transform, overload

_T = TypeVar("_T")
_MISSING: Final = object()


class Field:
    """One attribute of a value: its default, or what makes one, and where it plays no part."""

    __slots__ = ("compare", "default", "default_factory", "hash", "name", "repr")

    def __init__(
        self,
        name: str,
        default: object = _MISSING,
        *,
        default_factory: Callable[[], object] | None = None,
        hash: bool = True,
        repr: bool = True,
        compare: bool = True,
    ) -> None:
        self.name = name
        self.default = default
        self.default_factory = default_factory
        self.hash = hash and compare
        self.repr = repr
        self.compare = compare


def field(
    *,
    default_factory: Callable[[], Any] | None = None,
    hash: bool = True,
    repr: bool = True,
    compare: bool = True,
) -> Any:
    """Say more of an attribute than its default; without `compare` it is left out of the hash too."""
    return Field("", default_factory=default_factory, hash=hash, repr=repr, compare=compare)


@overload
@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def frozen(cls: type[_T], /) -> type[_T]: ...
@overload
def frozen(*, kw_only: bool) -> Callable[[type[_T]], type[_T]]: ...
def frozen(cls: type[Any] | None = None, /, *, kw_only: bool = False) -> Any:
    """Make a class of frozen values with slots out of a class body of annotated attributes.

    Bases are such classes, or have no attributes of their own. `__post_init__` is called when there is one.
    With `kw_only` attributes are given by name only.
    """
    return _make(cls, kw_only=kw_only) if cls is not None else lambda body: _make(body, kw_only=kw_only)


def replace(old: _T, /, **changes: object) -> _T:
    """Give a value like `old` but for `changes`.

    Raises:
        TypeError: it has no such attribute.
    """
    return type(old)(**{**{each.name: getattr(old, each.name) for each in fields(old)}, **changes})


def fields(of: object) -> tuple[Field, ...]:
    """Name the attributes of a value or of a class of values, those of its bases first."""
    found: tuple[Field, ...] = of.__value_fields__  # type: ignore[attr-defined]
    return found


def _make(cls: type[_T], *, kw_only: bool) -> type[_T]:
    found = {each.name: each for base in reversed(cls.__mro__[1:]) for each in _fields_of(base)}
    body = {name: item for name, item in vars(cls).items() if name not in ("__dict__", "__weakref__")}
    for name in cls.__annotations__:
        default = body.pop(name, _MISSING)
        found[name] = default if isinstance(default, Field) else Field(name, default)
        found[name].name = name
    own: dict[str, object] = {
        "__slots__": tuple(cls.__annotations__),
        "__match_args__": () if kw_only else tuple(found),
        "__value_fields__": tuple(found.values()),
    }
    metaclass: Any = type(cls)
    made: type[_T] = metaclass(cls.__name__, cls.__bases__, {**_METHODS, **body, **own})
    return made


def _fields_of(cls: type) -> tuple[Field, ...]:
    found: tuple[Field, ...] = vars(cls).get("__value_fields__", ())
    return found


def _init(self: Any, *given: object, **named: object) -> None:
    known = fields(self)
    if len(given) > len(self.__match_args__):
        raise TypeError(f"{type(self).__name__} takes {len(self.__match_args__)} arguments by place")
    put = object.__setattr__
    for each, item in zip(known, given, strict=False):
        put(self, each.name, item)
    for each in known[len(given) :]:
        if each.name in named:
            put(self, each.name, named.pop(each.name))
        elif each.default_factory is not None:
            put(self, each.name, each.default_factory())
        elif each.default is not _MISSING:
            put(self, each.name, each.default)
        else:
            raise TypeError(f"{type(self).__name__} lacks the argument {each.name!r}")
    if named:
        raise TypeError(f"{type(self).__name__} cannot take the argument {next(iter(named))!r}")
    self.__post_init__()


def _post_init(self: object) -> None:
    """Nothing is to be checked unless the class says so."""


def _repr(self: object) -> str:
    shown = [f"{each.name}={getattr(self, each.name)!r}" for each in fields(self) if each.repr]
    return f"{type(self).__qualname__}({', '.join(shown)})"


def _eq(self: object, other: object) -> object:
    if type(other) is not type(self):
        return NotImplemented
    return all(getattr(self, each.name) == getattr(other, each.name) for each in fields(self) if each.compare)


def _hash(self: object) -> int:
    return hash(tuple([getattr(self, each.name) for each in fields(self) if each.hash]))


def _refuse(self: object, name: str, item: object = None) -> NoReturn:
    from dataclasses import FrozenInstanceError

    raise FrozenInstanceError(f"{type(self).__name__} is frozen: {name!r} cannot change")


def _reduce(self: object) -> tuple[Any, ...]:
    return _restore, (type(self), {each.name: getattr(self, each.name) for each in fields(self)})


def _restore(cls: Callable[..., object], items: dict[str, object]) -> object:
    return cls(**items)


class _Default:
    """What a signature shows in place of a default that is made anew each time."""

    def __repr__(self) -> str:
        return "<made anew>"


class _Signature:
    """What `inspect.signature` and `help` show of a class; made when they ask."""

    def __get__(self, instance: object, owner: type) -> object:
        if "__value_fields__" not in vars(owner):
            raise AttributeError("a class derived from a value has a signature of its own")
        from inspect import Parameter, Signature

        written: dict[str, str] = {}
        for base in reversed(owner.__mro__):
            written |= vars(base).get("__annotations__", {})
        by_place = bool(owner.__match_args__)  # type: ignore[attr-defined]
        kind = Parameter.POSITIONAL_OR_KEYWORD if by_place else Parameter.KEYWORD_ONLY
        found = []
        for each in fields(owner):
            default = Parameter.empty if each.default is _MISSING else each.default
            if each.default_factory is not None:
                default = _Default()
            found.append(Parameter(each.name, kind, default=default, annotation=written[each.name]))
        return Signature(found, return_annotation=None, __validate_parameters__=False)


class _OfDataclass:
    """An attribute that `dataclasses` looks for, made by it when it does."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: object, owner: type) -> object:
        import dataclasses

        def described(each: Field) -> Any:
            default = dataclasses.MISSING if each.default is _MISSING else each.default
            factory = each.default_factory or dataclasses.MISSING
            return dataclasses.field(  # type: ignore[call-overload]
                default=default, default_factory=factory, hash=each.hash, repr=each.repr, compare=each.compare
            )

        known = [(each.name, Any, described(each)) for each in fields(owner)]
        kw_only = len(owner.__match_args__) < len(known)  # type: ignore[attr-defined]
        twin = dataclasses.make_dataclass(owner.__name__, known, frozen=True, kw_only=kw_only)
        return getattr(twin, self._name)


_METHODS: Final = {
    "__init__": _init,
    "__post_init__": _post_init,
    "__repr__": _repr,
    "__eq__": _eq,
    "__hash__": _hash,
    "__setattr__": _refuse,
    "__delattr__": _refuse,
    "__reduce__": _reduce,
    "__replace__": replace,
    "__signature__": _Signature(),
    "__dataclass_fields__": _OfDataclass(),
    "__dataclass_params__": _OfDataclass(),
}
