"""The door: what the package offers, that the docs tell all of it, and that it costs nothing to import."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from synthetic_faces import draw_faces

import zippy_batch as zb


def api_page(root: Path) -> str:
    return (root / "docs/api.md").read_text()


def test_every_public_name_is_in_the_docs_and_the_reverse(root: Path) -> None:
    text = api_page(root)
    in_tables = {name for name in re.findall(r"^\| `([A-Za-z_]+)[(`]", text, re.MULTILINE) if hasattr(zb, name)}
    named = in_tables | {name for name in ("Archive", "Progress", "ArchiveInfo") if f"`{name}`" in text}
    assert named == set(zb.__all__)


def test_every_public_name_is_there_and_described() -> None:
    for name in zb.__all__:
        assert name in dir(zb)
        found = getattr(zb, name)
        assert found.__name__ == name
        assert found.__module__.startswith("zippy_batch")
    with pytest.raises(AttributeError, match="no attribute 'archives2'"):
        zb.archives2  # noqa: B018


def test_modules_for_other_libraries_are_described(root: Path) -> None:
    named = set(re.findall(r"^\| `zb\.([a-z]+)` \|", api_page(root), re.MULTILINE))
    assert named == set(zb._ADAPTERS)
    assert not named & set(zb.__all__)
    page = api_page(root) + (root / "docs/use-an-archive.md").read_text()
    for name in named:
        module = getattr(zb, name)
        assert name in dir(zb)
        assert module.__name__ == f"zippy_batch.adapters.{name}"
        for one in module.__all__:
            assert f"`{one}`" in page or f"zb.{name}.{one}" in page
            assert getattr(module, one).__doc__


def test_every_error_is_public() -> None:
    import zippy_batch.errors

    errors = {
        name for name, one in vars(zippy_batch.errors).items() if isinstance(one, type) and issubclass(one, Exception)
    }
    assert errors <= set(zb.__all__)


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = (
        "import sys, zippy_batch as zb; dir(zb); zb.ArchiveError; zb.ArchiveOptions(quality=80);"
        "print(sorted(sys.modules.keys() & {'torch', 'ray', 'pyarrow', 'PIL', 'numpy', 'numba', 'typer'}))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize("call", ["archive('.', 'out.parquet')", "open('out.parquet')", "stats('out.parquet')"])
def test_without_numbas_compiler_nothing_is_done_and_it_is_said_why(call: str, tmp_path: Path) -> None:
    code = f"import zippy_batch as zb\ntry:\n    zb.{call}\nexcept zb.UsageError as error:\n    print(error)"
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("NUMBA_DISABLE_JIT is set, and the codecs are right only where numba compiles them")
    assert not list(tmp_path.iterdir())


def test_every_example_of_the_docs_runs(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw_faces(tmp_path / "faces", 9)
    monkeypatch.chdir(tmp_path)
    examples = re.findall(r"^```python\n(.*?)^```", api_page(root), re.MULTILINE | re.DOTALL)
    assert len(examples) == 5
    namespace: dict[str, object] = {"__name__": "examples"}
    for example in examples:
        exec(compile(example, "docs/api.md", "exec"), namespace)


def test_an_unknown_option_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(zb.UsageError, match="no option qualty; did you mean quality"):
        zb.archive(tmp_path, tmp_path / "out.parquet", qualty=80)
