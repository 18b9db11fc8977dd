"""The package keeps its shape: who imports whom, how wide and how long functions are, and that a name means one thing.

Everything is read from the source: nothing is imported.
"""

from __future__ import annotations

import ast
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "zippy_batch"

ORDER = (
    "__main__", "cli", "__init__", "api", "adapters", "training", "compare", "views", "dataset", "run", "sources",
    "images", "codecs", "jpeg", "archives", "stores", "config", "limits", "paths", "varint", "errors",
)  # fmt: skip
"""Rooms and modules at the top level. Each imports only from those after it."""

HEAVY = {
    "ray": ("run/executor.py", "training/ray_workers.py", "cli/job_client.py", "cli/job_entry.py"),
    "typer": ("cli/",),
    "rich": ("cli/progress.py",),
    "torch": (
        "codecs/",
        "training/",
        "run/executor.py",
        "run/encode_verified.py",
        "run/row_decoder.py",
        "adapters/torch.py",
    ),
    "numba": ("codecs/", "jpeg/", "images/", "archives/checksums.py"),
    "PIL": ("images/", "compare/", "training/", "adapters/", "views/"),
    "pyarrow": ("archives/", "stores/", "sources/", "compare/", "adapters/", "views/"),
    "matplotlib": ("compare/charts.py",),
}
"""Library -> the files, or rooms, that may import it."""

MOST_ROOMS, MOST_ARROWS = 20, 80
MOST_ARGUMENTS, MOST_LINES = 6, 60

_KERNEL = "the twin of a kernel of Numba, with its arguments"
WIDE = {
    **{
        f"codecs/latent/device_passes.py:{name}": _KERNEL
        for name in ("gather", "predict", "quantise", "absorb", "begin_stream", "to_colour", "to_grey")
    },
    "codecs/rans.py:_push_numpy": _KERNEL,
    "codecs/rans.py:_pop_numpy": _KERNEL,
    "api.py:split": "what select takes, and how it is divided",
    "run/restore_shard.py:restore_shard": "a unit, where from, where to, how, with what, and whom to tell",
    "sources/zip_file.py:_content": "fields of a header that stands in the file once",
    "training/run.py:fit": "what, where and how long; whom to tell and to ask, and a clock for tests",
}
"""Functions of more than MOST_ARGUMENTS arguments, and why they have them."""

LONG = {
    "cli/compare.py:compare": "flags and their help",
}
"""Functions of more than MOST_LINES lines, and why they are not divided."""


@cache
def sources() -> dict[str, ast.Module]:
    """Path below the package -> its syntax tree."""
    root = ROOT / PACKAGE
    return {str(path.relative_to(root)): ast.parse(path.read_text()) for path in sorted(root.rglob("*.py"))}


def room_of(path: str) -> str:
    return path.split("/")[0].removesuffix(".py")


def module_path(dotted: str) -> str | None:
    """The file of a module of this package; None for what is none."""
    below = dotted.removeprefix(f"{PACKAGE}.").replace(".", "/") if dotted != PACKAGE else "__init__"
    return next((path for path in (f"{below}.py", f"{below}/__init__.py") if path in sources()), None)


def is_for_types(node: ast.If) -> bool:
    return isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def imported(tree: ast.AST) -> Iterator[tuple[str, str | None]]:
    """(module, name) of all imports, also inside of functions; not those for type checkers alone."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and is_for_types(node):
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from ((node.module, alias.name) for alias in node.names)
        yield from imported(node)


@cache
def arrows() -> dict[str, set[str]]:
    """File -> the files of the package that it imports."""
    found: dict[str, set[str]] = defaultdict(set)
    for path, tree in sources().items():
        for module, name in imported(tree):
            if module.split(".")[0] != PACKAGE:
                continue
            target = (name and module_path(f"{module}.{name}")) or module_path(module)
            assert target, f"{path} imports {module}, which is not there"
            # what the face of the package has itself (its version) is below everything
            if target not in (path, "__init__.py"):
                found[path].add(target)
    return found


def functions() -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """`room/file.py:function` or `room/file.py:Class.method`, and its tree."""

    def walk(path: str, tree: ast.AST, prefix: str) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
        for node in ast.iter_child_nodes(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{path}:{prefix}{node.name}", node
            name = f"{prefix}{node.name}." if isinstance(node, ast.ClassDef | ast.FunctionDef) else prefix
            yield from walk(path, node, name)

    for path, tree in sources().items():
        yield from walk(path, tree, "")


def test_every_room_has_its_place() -> None:
    rooms = {room_of(path) for path in sources()}
    assert not rooms - set(ORDER), "new at the top level: give it a place in ORDER, or put it into a room"
    assert len(rooms) <= MOST_ROOMS


def test_imports_go_down() -> None:
    upward = [
        f"{path} -> {target}"
        for path, targets in arrows().items()
        for target in sorted(targets)
        if ORDER.index(room_of(path)) > ORDER.index(room_of(target))
    ]
    assert not upward


def test_few_rooms_know_each_other() -> None:
    between = {
        (room_of(path), room_of(target))
        for path, targets in arrows().items()
        for target in targets
        if room_of(path) != room_of(target)
    }
    assert len(between) <= MOST_ARROWS


def test_imports_make_no_circle() -> None:
    done: set[str] = set()

    def visit(path: str, above: tuple[str, ...]) -> None:
        assert path not in above, " -> ".join((*above[above.index(path) :], path))
        if path not in done:
            for target in sorted(arrows().get(path, ())):
                visit(target, (*above, path))
            done.add(path)

    for path in sources():
        visit(path, ())


def test_heavy_libraries_are_imported_where_they_belong() -> None:
    strays = [
        f"{path} imports {library}"
        for path, tree in sources().items()
        for library in {module.split(".")[0] for module, _ in imported(tree)} & set(HEAVY)
        if not path.startswith(HEAVY[library])
    ]
    assert not strays


def is_kernel(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether Numba compiles it: it then takes arrays and numbers, and no objects that would hold them."""
    return any("jit" in ast.unparse(decorator) for decorator in function.decorator_list)


def width(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    arguments = (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)
    return len([one for one in arguments if one.arg not in ("self", "cls")])


def test_functions_take_few_arguments() -> None:
    """Commands take as many as they have flags; any other function takes a dataclass."""
    wide = {
        name
        for name, function in functions()
        if width(function) > MOST_ARGUMENTS and not name.startswith("cli/") and not is_kernel(function)
    }
    assert not wide - set(WIDE)
    assert not set(WIDE) - wide, "no longer so: take it off the list"


def test_functions_are_short() -> None:
    long = {name for name, one in functions() if (one.end_lineno or 0) - one.lineno + 1 > MOST_LINES}
    assert not long - set(LONG)
    assert not set(LONG) - long, "no longer so: take it off the list"


def test_a_class_has_a_name_of_its_own() -> None:
    names = Counter(node.name for tree in sources().values() for node in tree.body if isinstance(node, ast.ClassDef))
    assert not [name for name, count in names.items() if count > 1]


def test_a_constant_has_one_value() -> None:
    """Of those that other modules may use; type variables and loggers are each module's own."""
    values: dict[str, set[str]] = defaultdict(set)
    for tree in sources().values():
        for node in tree.body:
            if not isinstance(node, ast.Assign | ast.AnnAssign) or node.value is None:
                continue
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                if isinstance(target, ast.Name) and re.fullmatch(r"[A-Z][A-Z0-9_]*", target.id):
                    values[target.id].add(ast.unparse(node.value))
    assert not {name: found for name, found in values.items() if len(found) > 1}
