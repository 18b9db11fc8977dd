"""Conditions on an archive's columns: "psnr < 30 and codec == 'latent'" -> which rows.

The notation is Python's, read by its parser and by nothing that could run it, or SQL's (`sql`). Null is unknown, as in
SQL: a comparison with it holds for no row, nor does its opposite; `psnr is None` or `psnr IS NULL` asks for it.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from zippy_batch.archives.schema import COLUMNS
from zippy_batch.archives.sql import SEARCHES, as_python
from zippy_batch.errors import UsageError

_TYPES = {"text": str, "int32": int, "int64": int, "float32": float, "bool": bool}
TYPES: Mapping[str, type] = {c.name: _TYPES[c.kind] for c in COLUMNS if c.kind in _TYPES}
"""Columns that a condition may name, and what they hold."""

_ORDER: Mapping[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}

Row = Mapping[str, Any]
_Truth = Callable[[Row], bool | None]
_Value = Callable[[Row], Any]


@dataclass(frozen=True)
class Condition:
    text: str
    columns: tuple[str, ...]
    """That it names."""
    _holds: _Truth

    def rows(self, columns: Mapping[str, Sequence[Any]]) -> list[int]:
        """Places at which it holds; `columns` gives the values of at least those that it names."""
        values = zip(*(columns[name] for name in self.columns), strict=True)
        return [place for place, row in enumerate(values) if self._holds(dict(zip(self.columns, row, strict=True)))]

    def holds(self, row: Row) -> bool:
        return self._holds(row) is True


def parse_condition(text: str) -> Condition:
    """Raises UsageError, saying what is not understood."""
    try:
        tree = ast.parse(as_python(text), mode="eval")
        parser = _ConditionParser()
        holds = parser.truth(tree.body)
    except (SyntaxError, ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, SyntaxError) else str(error)
        raise UsageError(f"the condition {text!r} is not understood: {reason}; write for example: {_EXAMPLE}") from None
    if not parser.names:
        raise UsageError(f"the condition {text!r} names no column; write for example: {_EXAMPLE}")
    return Condition(text, tuple(sorted(parser.names)), holds)


_EXAMPLE = "psnr < 30 and codec == 'latent'"


class _ConditionParser:
    """Python's syntax tree -> functions of a row. Raises ValueError."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def truth(self, node: ast.expr) -> _Truth:
        match node:
            case ast.BoolOp(ast.And(), parts):
                return _all([self.truth(part) for part in parts])
            case ast.BoolOp(ast.Or(), parts):
                return _any([self.truth(part) for part in parts])
            case ast.UnaryOp(ast.Not(), part):
                return _not(self.truth(part))
            case ast.Compare(left, operators, right):
                sides = [left, *right]
                return _all([self._comparison(*three) for three in zip(sides, operators, right, strict=False)])
            case ast.Call(ast.Name(name), [value, ast.Constant(str() as pattern)]) if name in SEARCHES.values():
                return self._search(value, pattern, 0 if name == SEARCHES["like"] else re.IGNORECASE)
            case ast.Name(name) if TYPES.get(name) is bool:
                return self._value(node)[0]
        raise ValueError(f"{ast.unparse(node)!r} is neither true nor false")

    def _comparison(self, left: ast.expr, sign: ast.cmpop, right: ast.expr) -> _Truth:
        value, kind = self._value(left)
        if isinstance(sign, ast.Is | ast.IsNot):
            if not (isinstance(right, ast.Constant) and right.value is None):
                raise ValueError("'is' and 'is not' are followed by None")
            wanted = isinstance(sign, ast.Is)
            return lambda row: (value(row) is None) == wanted
        if isinstance(sign, ast.In | ast.NotIn):
            among, wanted = self._listed(right, kind), isinstance(sign, ast.In)
            return _known(lambda a, b: (a in b) == wanted, value, lambda row: among)
        other, other_kind = self._value(right)
        _match(kind, other_kind, right)
        return _known(_ORDER[type(sign)], value, other)

    def _search(self, node: ast.expr, pattern: str, flags: int) -> _Truth:
        value, kind = self._value(node)
        if kind is not str:
            raise ValueError(f"{ast.unparse(node)!r} is {_NAMES[kind]}, and LIKE is of texts")
        parts = {"%": ".*", "_": "."}
        regex = re.compile("".join(parts.get(one) or re.escape(one) for one in pattern), flags | re.DOTALL)
        return _known(lambda a, b: b.fullmatch(a) is not None, value, lambda row: regex)

    def _listed(self, node: ast.expr, kind: type) -> tuple[Any, ...]:
        if not isinstance(node, ast.List | ast.Tuple | ast.Set):
            raise ValueError("'in' and 'not in' are followed by a list, such as [1, 2]")
        found = []
        for one in node.elts:
            value, its_kind = self._value(one)
            _match(kind, its_kind, one)
            if isinstance(one, ast.Name):
                raise ValueError(f"{one.id!r} in a list: only numbers and texts may be there")
            found.append(value({}))
        return tuple(found)

    def _value(self, node: ast.expr) -> tuple[_Value, type]:
        match node:
            case ast.Name(name):
                if name not in TYPES:
                    raise ValueError(f"there is no column {name!r}; there are {', '.join(TYPES)}")
                self.names.add(name)
                return operator.itemgetter(name), TYPES[name]
            case ast.Constant(str() | int() | float() as constant):
                return (lambda row: constant), type(constant)
            case ast.UnaryOp(ast.USub(), ast.Constant(int() | float() as number)):
                return (lambda row: -number), type(number)
        raise ValueError(f"{ast.unparse(node)!r} is no column, number or text")


def _match(kind: type, other: type, node: ast.expr) -> None:
    if (kind is str) != (other is str):
        raise ValueError(f"{ast.unparse(node)!r} is {_NAMES[other]}, and is compared with {_NAMES[kind]}")


_NAMES = {str: "a text", int: "a number", float: "a number", bool: "true or false"}


def _known(compare: Callable[[Any, Any], bool], left: _Value, right: _Value) -> _Truth:
    def holds(row: Row) -> bool | None:
        a, b = left(row), right(row)
        return None if a is None or b is None else compare(a, b)

    return holds


def _all(parts: Sequence[_Truth]) -> _Truth:
    def holds(row: Row) -> bool | None:
        found = [part(row) for part in parts]
        return False if False in found else None if None in found else True

    return holds


def _any(parts: Sequence[_Truth]) -> _Truth:
    def holds(row: Row) -> bool | None:
        found = [part(row) for part in parts]
        return True if True in found else None if None in found else False

    return holds


def _not(part: _Truth) -> _Truth:
    def holds(row: Row) -> bool | None:
        found = part(row)
        return None if found is None else not found

    return holds
