"""The documentation names only what exists, and leaves no command or option out."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path

import pytest
from options import with_tables
from synthetic_faces import draw_faces
from typer.testing import CliRunner

import zippy_batch as zb
from zippy_batch.cli.app import app

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "benchmarks").glob("*.md")])
COMMANDS = (
    "archive",
    "restore",
    "stats",
    "verify",
    "append",
    "merge",
    "select",
    "erase",
    "diff",
    "dedupe",
    "export",
    "ls",
    "cat",
    "show",
    "report",
    "serve",
    "compare",
    "train",
    "models",
    "submit",
)
SHELL_BLOCK = re.compile(r"^```(?:sh|bash|console)\n(.*?)^```", re.M | re.S)
TABLE = re.compile(r"(?:^\|.*\n)+", re.M)


def help_text(command: str) -> str:
    return CliRunner().invoke(app, [command, "--help"]).stdout


def options_of(command: str) -> set[str]:
    """Long options in the command's help, without --help."""
    listed = [line for line in help_text(command).splitlines() if re.match(r"  (-\w, )?--", line)]
    return {option for line in listed for option in re.findall(r"--[a-z][a-z-]*", line)} - {"--help"}


def shell_lines(page: Path) -> list[str]:
    blocks = SHELL_BLOCK.findall(page.read_text())
    return [line for block in blocks for line in block.splitlines() if line.strip() and not line.startswith("#")]


def documented_lines() -> list[tuple[str, str]]:
    return [(page.name, line) for page in PAGES for line in shell_lines(page)]


def section(page: Path, title: str) -> str:
    text = page.read_text()
    found = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", text, re.M | re.S)
    assert found, f"{page.name} has no section {title!r}"
    return found[1]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_documented_with_an_example(command: str) -> None:
    assert f"\nzippy-batch {command}" in section(ROOT / "docs" / "usage.md", command)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_documented(command: str) -> None:
    text = section(ROOT / "docs" / "usage.md", command)
    documented = set(re.findall(r"--[a-z][a-z-]*", text))
    assert options_of(command)
    assert not options_of(command) - documented
    assert not documented - options_of(command)


def test_tables_of_options_are_what_the_commands_declare() -> None:
    page = (ROOT / "docs" / "usage.md").read_text()
    assert with_tables(page) == page, "make them anew: python docs/options.py"


@pytest.mark.parametrize(("page", "line"), documented_lines())
def test_documented_command_lines_exist(page: str, line: str) -> None:
    words = [word for word in shlex.split(line) if word != "&&"]
    program = Path(words[0]).name
    if program == "zippy-batch":
        if words[1].startswith("--"):
            assert words[1] in CliRunner().invoke(app, ["--help"]).stdout
            return
        for command in " ".join(words[1:]).split(" -- "):
            name, *rest = command.split()
            assert name in COMMANDS
            assert not {word.split("=")[0] for word in rest if word.startswith("--")} - options_of(name)
    elif program == "make":
        targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M)
        assert {word for word in words[1:] if "=" not in word} <= set(targets)
    elif program in ("python", "python3", "ray"):
        for script in (word for word in words if word.endswith(".py")):
            assert (ROOT / script).exists()
    else:
        assert program in ("pip", "duckdb", "bash"), f"{page}: {line}"


def code_block(language: str) -> str:
    """The README's one block in a language."""
    (block,) = re.findall(rf"^```{language}\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
    return str(block)


def test_the_python_and_the_sql_of_the_readme_run(
    drawn_faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    duckdb = pytest.importorskip("duckdb")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "faces").symlink_to(drawn_faces)
    exec(code_block("python"), {})
    ratio, psnr_db = map(float, capsys.readouterr().out.split())
    assert ratio > 1
    ((codec, rows, source_bytes, _, worst_db),) = duckdb.sql(code_block("sql")).fetchall()
    assert (codec, rows) == ("latent", 40)
    assert source_bytes == sum(path.stat().st_size for path in drawn_faces.iterdir())
    assert worst_db <= psnr_db


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_every_example_of_how_to_use_an_archive_runs_also_on_ray(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ray_session: None
) -> None:
    for seed, name in enumerate(("glasses", "none")):
        draw_faces(tmp_path / "faces" / name, 12, seed=seed)
    monkeypatch.chdir(tmp_path)
    examples = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs/use-an-archive.md").read_text(), re.M | re.S)
    assert len(examples[0].splitlines()) <= 12
    namespace: dict[str, object] = {"__name__": "examples"}
    zb.filesystem.register()
    for example in examples:
        if "zb.hf" not in example or importlib.util.find_spec("datasets"):
            exec(compile(example, "docs/use-an-archive.md", "exec"), namespace)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_table_of_figures_names_the_script_that_made_them() -> None:
    tables = list(TABLE.finditer(section(ROOT / "README.md", "Measured")))
    assert tables
    text = section(ROOT / "README.md", "Measured")
    for table in tables:
        introduction = text[: table.start()].rstrip().splitlines()[-1]
        script = re.search(r"`(benchmarks/\w+\.py)`", introduction)
        assert script, f"no script is named above:\n{table[0]}"
        assert (ROOT / script[1]).exists(), script[1]


def test_the_tests_behind_the_table_of_faults_are_there() -> None:
    named = re.findall(r"`(test_\w+)` \|$", (ROOT / "docs" / "faults.md").read_text(), re.M)
    assert len(named) == len(set(named)) > 20
    there = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    assert not [name for name in named if f"def {name}(" not in there]


def test_every_benchmark_says_how_to_run_it() -> None:
    page = (ROOT / "benchmarks" / "README.md").read_text()
    for script in (ROOT / "benchmarks").glob("*.py"):
        assert f"`{script.name}`" in page
        assert f"python benchmarks/{script.name}" in script.read_text().split('"""')[1]


def test_every_make_target_is_explained() -> None:
    text = (ROOT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.*)$", text, re.M)
    assert phony
    for target in phony[1].split():
        assert re.search(rf"^{target}:.*  ## \w", text, re.M), target


def test_installed_version_has_a_changelog_entry() -> None:
    version = CliRunner().invoke(app, ["--version"]).stdout.split()[1]
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text()


def test_constraints_pin_every_dependency_once() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(d for extra in project["optional-dependencies"].values() for d in extra)]
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines)
    pinned = [re.sub(r"[-_.]+", "-", line.split("==")[0]).lower() for line in lines]
    assert len(pinned) == len(set(pinned))
    assert {re.split(r"[<>=!\[ ]", d)[0].lower() for d in wanted} <= set(pinned)
