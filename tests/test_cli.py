"""What a user sees: help, errors, exit codes, presets. The pipeline behind it is a fake here."""

from __future__ import annotations

import io
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from zippy_batch.cli.app import app
from zippy_batch.cli.progress import LineWriter, Shown, duration_text, facts, showing
from zippy_batch.config import (
    ArchiveOptions,
    RestoreOptions,
    RunOptions,
    TrainOptions,
    VerifyOptions,
    combine,
    load_preset,
)
from zippy_batch.errors import ArchiveError, OutputExists, UsageError
from zippy_batch.run import pipeline
from zippy_batch.run.report import ArchiveReport, Finding, Line, Progress, VerifyReport

Run = Callable[..., Result]


@pytest.fixture
def run() -> Run:
    runner = CliRunner()

    def call(*args: object) -> Result:
        return runner.invoke(app, [str(a) for a in args])

    return call


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Calls of the pipeline's functions, which do nothing but succeed."""
    seen: list[dict[str, Any]] = []
    line = Line(
        shard=0, images=3, source_bytes=3000, archive_bytes=600, lossy_images=3, lossy_bytes=540, lossy_pixels=5292
    )

    def archive(source: Path, output: Path, options: Any = None, run: Any = None, progress: Any = None) -> Any:
        print("as Ray does when a worker dies")
        seen.append({"verb": "archive", "source": source, "output": output, "options": options, "run": run})
        return ArchiveReport(str(output), (line,), line, {"latent": "ab" * 32}, {})

    def restore(archive: Path, destination: Path, options: Any = None, run: Any = None, progress: Any = None) -> Any:
        print("as Ray does when a worker dies")
        seen.append({"verb": "restore", "archive": archive, "to": destination, "options": options, "run": run})
        return ArchiveReport(str(archive), (line,), line, {}, {})

    def verify(archive: str, against: Any = None, options: Any = None, run: Any = None, progress: Any = None) -> Any:
        print("as Ray does when a worker dies")
        seen.append({"verb": "verify", "archive": archive, "against": against, "options": options, "run": run})
        return VerifyReport(str(archive), rows=3, decoded=3 if options.deep else 0)

    def stats(archive: Path) -> Any:
        seen.append({"verb": "stats", "archive": archive})
        return ArchiveReport(str(archive), (line,), line, {}, {})

    for function in (archive, restore, verify, stats):
        monkeypatch.setattr(pipeline, function.__name__, function)
    return seen


def failing(error: BaseException) -> Callable[..., Any]:
    def fail(*args: object, **kwargs: object) -> None:
        raise error

    return fail


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


# help


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_each_command_carries_an_example(run: Run, command: str) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0
    assert "Examples:" in result.stdout
    assert f"zippy-batch {command}" in result.stdout


def test_every_command_is_listed(run: Run) -> None:
    listed = re.findall(r"^  (\w+) {2,}\S", run("--help").stdout.split("Commands:")[1], re.M)
    assert tuple(listed) == COMMANDS


def test_help_says_the_defaults_that_apply(run: Run) -> None:
    text = " ".join(run("archive", "--help").stdout.split())
    defaults = ArchiveOptions()
    assert f"bigger. [default: {defaults.quality}]" in text
    assert f"[default: {defaults.batch_size}]" in text
    assert f"[default: {defaults.model}]" in text


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from zippy_batch.cli.app import app\n"
        "try: app(['archive', '--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'ray', 'pyarrow', 'numpy', 'PIL', 'numba'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_help_waits_for_no_large_library() -> None:
    code = """
import sys
from zippy_batch.cli.app import main
sys.argv = ["zippy-batch", "--help"]
try:
    main()
except SystemExit:
    pass
large = {"torch", "ray", "numba", "pyarrow", "numpy", "PIL"} & sys.modules.keys()
assert not large, large
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_an_interrupt_while_the_program_loads_shows_no_traceback() -> None:
    code = """
import sys
class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == "typer":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupt())
from zippy_batch.__main__ import main
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


def test_a_switch_that_numba_has_for_debugging_breaks_nothing(drawn_faces: Path, tmp_path: Path) -> None:
    (tmp_path / "faces").mkdir()
    shutil.copy(next(drawn_faces.iterdir()), tmp_path / "faces")
    command = [sys.executable, "-m", "zippy_batch", "archive", "faces", "out.parquet", "--exact"]
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_version_is_that_of_the_package(run: Run) -> None:
    result = run("--version")
    assert result.exit_code == 0
    assert re.fullmatch(r"zippy-batch \d+\.\d+\.\d+\n", result.stdout)


# options


def test_flags_reach_the_pipeline(run: Run, calls: list[dict[str, Any]]) -> None:
    flags = "-q 80 --min-psnr 30 --strict --no-exact --shard-size 10 --batch-size 8 --device cpu"
    flags += " --model m.safetensors --exact-model e.safetensors"
    result = run("archive", "in", "out.parquet", *flags.split(), "--workers", "3", "--address", "a:1", "--overwrite")
    assert result.exit_code == 0, result.output
    (call,) = calls
    assert (call["source"], call["output"]) == ("in", "out.parquet")
    assert call["options"] == ArchiveOptions(
        quality=80,
        min_psnr=30.0,
        strict=True,
        exact="never",
        model="m.safetensors",
        exact_model="e.safetensors",
        shard_size=10,
        batch_size=8,
        device="cpu",
    )
    assert call["run"] == RunOptions(3, "a:1", True)


def test_what_the_source_is_reaches_the_pipeline(run: Run, calls: list[dict[str, Any]]) -> None:
    run("archive", "in", "out.parquet", "--input", "tar", "--labels", "folders", "--leave-out")
    options = calls[0]["options"]
    assert (options.input, options.labels, options.leave_out) == ("tar", "folders", True)
    run("verify", "out.parquet", "--against", "in", "--input", "tar")
    run("verify", "out.parquet", "--against", "in")
    assert [call["options"].input for call in calls[1:]] == ["tar", "auto"]


def test_without_flags_the_defaults_apply(run: Run, calls: list[dict[str, Any]]) -> None:
    run("archive", "in", "out.parquet")
    run("restore", "out.parquet", "back")
    run("verify", "out.parquet")
    assert [call["run"] for call in calls] == [RunOptions()] * 3
    assert [call["options"] for call in calls] == [ArchiveOptions(), RestoreOptions(), VerifyOptions()]


def test_restore_flags_reach_the_pipeline(run: Run, calls: list[dict[str, Any]], tmp_path: Path) -> None:
    flags = [
        "--select",
        "*.jpg",
        "--select",
        "sub/*",
        "--keep-going",
        "--reference",
        str(tmp_path),
        "--jpeg-quality",
        "90",
    ]
    run("restore", "a", "back", *flags, "--where", "psnr < 30")
    assert calls[0]["options"] == RestoreOptions("jpeg", 90, ("*.jpg", "sub/*"), "psnr < 30", True, tmp_path)


def test_verify_flags_reach_the_pipeline(run: Run, calls: list[dict[str, Any]]) -> None:
    run("verify", "a.parquet", "--against", "in", "--deep", "--workers", "1")
    assert (calls[0]["against"], calls[0]["run"]) == ("in", RunOptions(workers=1))
    run("verify", "a.parquet", "--sample", "7")
    assert [call["options"] for call in calls] == [VerifyOptions(deep=True), VerifyOptions(sample=7)]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["archive", "in", "out", "-q", "0"], "quality must be 1 to 100, not 0"),
        (["archive", "in", "out", "-q", "101"], "quality must be 1 to 100, not 101"),
        (["archive", "in", "out", "-q", "high"], "--quality"),
        (["archive", "in", "out", "--min-psnr", "nan"], "--min-psnr must be between 0 and 99 dB"),
        (["archive", "in", "out", "--min-psnr", "30", "--no-verify"], "drop one of the two"),
        (["archive", "in", "out", "--device", "gpu"], "device must be one of auto, cpu, cuda, not 'gpu'"),
        (["archive", "in", "out", "--input", "tra"], "input must be one of auto, files"),
        (["archive", "in", "out", "--labels", "folder"], "not 'folder'; did you mean 'folders'?"),
        (["archive", "in", "out", "--workers", "-1"], "workers must be 0 or more, not -1"),
        (["archive", "in", "out", "--batch-size", "0"], "--batch-size must be 1 or more, not 0"),
        (["restore", "a", "back", "--format", "jpg"], "not 'jpg'; did you mean 'jpeg'?"),
        (["restore", "a", "back", "--format", "png", "--jpeg-quality", "90"], "drop one of the two"),
        (["restore", "a", "back", "--jpeg-quality", "0"], "--jpeg-quality must be 1 to 100, not 0"),
        (["archive", "in"], "OUT"),
        (["archive", "in", "out", "--qualty", "3"], "--quality"),
        (["pack", "in", "out"], "pack"),
    ],
)
def test_wrong_usage_exits_2_before_anything_is_done(
    run: Run, calls: list[dict[str, Any]], args: list[str], said: str
) -> None:
    result = run(*args)
    assert result.exit_code == 2
    assert said in result.stderr
    assert not result.stdout
    assert not calls


# presets


def preset(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "preset.toml"
    path.write_text(text)
    return path


def test_flags_win_over_the_preset_and_the_preset_over_the_defaults(
    run: Run, calls: list[dict[str, Any]], tmp_path: Path
) -> None:
    path = preset(tmp_path, "[archive]\nquality = 60\nmin_psnr = 28\nstrict = true\n[run]\nworkers = 5\n")
    result = run("archive", "in", "out", "--config", str(path), "--quality", "90", "--lenient")
    assert result.exit_code == 0, result.output
    assert calls[0]["options"] == ArchiveOptions(quality=90, min_psnr=28.0, strict=False)
    assert calls[0]["run"] == RunOptions(workers=5)


def test_a_preset_sets_restore_options_too(tmp_path: Path) -> None:
    path = preset(tmp_path, '[restore]\nformat = "png"\nreference = "faces"\n')
    assert combine(RestoreOptions, load_preset(path).restore, {}) == RestoreOptions("png", reference=Path("faces"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[archive]\nqualty = 3\n", "unknown key 'qualty' in [archive]; did you mean 'quality'?"),
        ("[archive]\nzzz = 3\n", "unknown key 'zzz' in [archive]; there is quality, min_psnr"),
        ("[archve]\nquality = 3\n", "unknown table or key 'archve'; did you mean 'archive'?"),
        ("quality = 3\n", "unknown table or key 'quality'"),
        ("archive = 3\n", "write [archive] and its keys below it"),
        ("[archive]\nquality = true\n", "'quality' in [archive] must be int, not bool"),
        ("[archive]\nquality = '80'\n", "'quality' in [archive] must be int, not str"),
        ("[archive]\nmin_psnr = 'high'\n", "'min_psnr' in [archive] must be float, not str"),
        ("[archive]\nstrict = 1\n", "'strict' in [archive] must be bool, not int"),
        ("[archive]\nquality = 300\n", "[archive]: quality must be 1 to 100, not 300"),
        ("[archive\n", "is not valid TOML"),
    ],
)
def test_a_wrong_preset_is_refused_by_name(
    run: Run, calls: list[dict[str, Any]], tmp_path: Path, text: str, said: str
) -> None:
    path = preset(tmp_path, text)
    result = run("archive", "in", "out", "--config", str(path))
    assert result.exit_code == 2
    assert str(path) in result.stderr
    assert said in result.stderr
    assert not calls


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00"])
def test_an_unreadable_preset_is_a_usage_error(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "preset.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=re.escape(str(path))):
        load_preset(path)


def test_shipped_presets_load_and_differ_from_the_defaults(root: Path) -> None:
    paths = sorted((root / "zippy_batch" / "presets").glob("*.toml"))
    assert [path.stem for path in paths] == ["cluster", "gpu", "laptop", "train"]
    for path in paths:
        loaded = load_preset(path)
        for options, given in (
            (ArchiveOptions(), loaded.archive),
            (RunOptions(), loaded.run),
            (RestoreOptions(), loaded.restore),
            (TrainOptions(), loaded.train),
        ):
            for key, value in given.items():
                assert getattr(options, key) != value, f"{path.name}: {key} = {value!r} is the default already"


def test_a_preset_that_is_built_in_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_preset(Path("laptop")).run == {"workers": 2}
    with pytest.raises(UsageError, match="built in are cluster, gpu, laptop, train"):
        load_preset(Path("desktop"))
    Path("laptop").write_text("[run]\nworkers = 7\n")
    assert load_preset(Path("laptop")).run == {"workers": 7}


def test_each_line_of_a_shipped_preset_says_why(root: Path) -> None:
    for path in (root / "zippy_batch" / "presets").glob("*.toml"):
        for line in path.read_text().splitlines():
            if "=" in line and not line.startswith("#"):
                assert "#" in line, f"{path.name}: {line}"


# errors and exit codes


@pytest.mark.parametrize(
    ("error", "code"),
    [(OutputExists("out.parquet exists"), 2), (ArchiveError("not an archive"), 1), (UsageError("no such place"), 2)],
)
def test_an_error_is_one_message_and_its_exit_code(
    run: Run, monkeypatch: pytest.MonkeyPatch, error: Exception, code: int
) -> None:
    monkeypatch.setattr(pipeline, "archive", failing(error))
    result = run("archive", "in", "out")
    assert result.exit_code == code
    assert result.stderr == f"error: {error}\n"
    assert result.stdout == ""


def test_an_unforeseen_error_says_how_to_see_where_it_came_from(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "archive", failing(RuntimeError("the dog ate it")))
    result = run("archive", "in", "out")
    assert result.exit_code == 1
    assert "error: RuntimeError: the dog ate it" in result.stderr
    assert "Traceback" not in result.stderr
    hint = re.search(r"zippy-batch (--traceback) archive", result.stderr)
    assert hint
    assert "Traceback (most recent call last)" in run(hint[1], "archive", "in", "out").stderr


def test_a_full_disk_is_said_without_a_traceback(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "archive", failing(OSError(28, "No space left on device", "/big")))
    result = run("archive", "in", "out")
    assert (result.exit_code, result.stderr) == (1, "error: No space left on device: /big\n")


@pytest.mark.parametrize("command", ["archive", "restore"])
def test_an_interrupt_exits_130_and_says_how_to_go_on(run: Run, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.setattr(pipeline, command, failing(KeyboardInterrupt()))
    result = run(command, "in", "out")
    assert result.exit_code == 130
    assert result.stderr.startswith("interrupted; run the same command again to ")
    assert "--overwrite" not in result.stderr


def test_what_is_wrong_with_an_archive_is_printed_and_exits_1(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    report = VerifyReport("a.parquet", rows=3, decoded=0, against="in", missing=(Finding("b/c.jpg", "not there"),))
    monkeypatch.setattr(pipeline, "verify", lambda *args, **more: report)
    result = run("verify", "a.parquet", "--against", "in")
    assert result.exit_code == 1
    assert "b/c.jpg" in result.stdout


# output


@pytest.mark.parametrize(
    "args", [["archive", "in", "out"], ["restore", "a", "back"], ["stats", "a"], ["verify", "a"]], ids=lambda a: a[0]
)
def test_json_is_the_whole_report_and_nothing_else(run: Run, calls: list[dict[str, Any]], args: list[str]) -> None:
    result = run(*args, "--json")
    assert result.exit_code == 0
    assert isinstance(json.loads(result.stdout), dict)


STATS = """
from zippy_batch.run import pipeline
from zippy_batch.cli.app import app
from zippy_batch.run.report import ArchiveReport, Line
line = Line(shard=0, images=3)
pipeline.stats = lambda path: ArchiveReport('a', (line,) * 5000, line, {}, {})
app(['stats', 'a'])
"""
VERIFY_DAMAGED = """
from zippy_batch.run import pipeline
from zippy_batch.cli.app import app
from zippy_batch.run.report import Finding, VerifyReport
pipeline.verify = lambda *rest, **more: VerifyReport('a', 1, 0, damaged=(Finding('b.jpg', 'checksum'),))
app(['verify', 'a'])
"""


@pytest.mark.parametrize(("script", "exit_code"), [(STATS, 0), (VERIFY_DAMAGED, 1)], ids=["stats", "verify"])
def test_a_reader_that_stops_early_changes_no_exit_code(script: str, exit_code: int) -> None:
    """`zippy-batch stats ARCHIVE | head` must not end in a traceback, nor hide what is wrong."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as closed:
        command = [sys.executable, "-c", script]
        done = subprocess.run(command, stdout=closed, stderr=subprocess.PIPE, text=True, check=False)
    assert "Traceback" not in done.stderr
    assert "error" not in done.stderr
    assert done.returncode == exit_code


def test_a_pipe_that_breaks_during_the_work_is_a_failure(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when progress on standard error has lost its reader: nothing was archived."""
    monkeypatch.setattr(pipeline, "archive", failing(BrokenPipeError(32, "Broken pipe")))
    assert run("archive", "in", "out").exit_code == 1


# progress


def at(images: int, seconds: float) -> Progress:
    return Progress(images, 1000, images * 900, 900_000, images * 200, images // 100, 10, seconds)


def test_progress_says_speed_size_and_time_left() -> None:
    assert facts(at(250, 2.0)) == ["125 images/s", "0.11 MB/s", "225 kB to 50.0 kB (4.50x)", "6 s left"]
    assert facts(at(0, 1.0)) == ["starting"]
    assert len(facts(at(1000, 8.0))) == 3


def test_without_a_terminal_there_are_few_lines() -> None:
    out = io.StringIO()
    watch = LineWriter("archive", out, every_s=0.05)
    for i in range(1000):
        watch(at(i, 1.0))
    time.sleep(0.06)
    watch(at(1000, 8.0))
    lines = out.getvalue().splitlines()
    assert lines[-1].startswith("archive: 1000 of 1000 images, 125 images/s")
    assert len(lines) < 20


def test_a_short_run_without_a_terminal_says_nothing() -> None:
    out = io.StringIO()
    with showing("archive", stream=out) as watch:
        watch(at(10, 0.1))
    assert out.getvalue() == ""


def test_on_a_terminal_there_is_a_bar_that_goes_away() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    out = Terminal()
    with showing("archive", stream=out) as watch:
        watch(at(250, 2.0))
    assert "125 images/s" in out.getvalue()


@pytest.mark.parametrize(("seconds", "text"), [(44.6, "45 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")])
def test_durations_read_like_durations(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


def test_progress_as_json_is_a_line_a_second_and_where_the_run_ended() -> None:
    out = io.StringIO()
    with showing("archive", Shown("json"), out) as watch:
        for images in range(0, 501, 10):
            watch(at(images, 2.0))
    first, *_, last = map(json.loads, out.getvalue().splitlines())
    assert (first["command"], first["done"], first["total"], first["seconds_left"]) == ("archive", 0, 1000, None)
    assert (last["done"], last["rate"], last["seconds_left"]) == (500, 250.0, 2.0)


def test_quiet_leaves_errors_and_what_was_asked_for_as_json(
    run: Run, calls: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    done = run("archive", "in", "out.parquet", "--quiet")
    assert done.stdout == ""
    assert "before you delete" not in done.stderr
    assert json.loads(run("archive", "in", "out.parquet", "--quiet", "--json").stdout)
    monkeypatch.setattr(pipeline, "archive", failing(UsageError("no such place")))
    assert run("archive", "in", "out.parquet", "--quiet").stderr == "error: no such place\n"
    assert run("archive", "in", "out.parquet", "--progress", "xml").exit_code == 2


@pytest.mark.parametrize("command", COMMANDS)
def test_help_speaks_no_python(run: Run, command: str) -> None:
    text = run(command, "--help").stdout
    assert not re.search(r"<\w+|list\[|\bNone\b|\{[A-Z]", text)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["restore", "a.parquet", "-"], "error: - is no path"),
        (["archive", "-", "a.parquet"], "error: - is no path"),
        (["compare", "s3://bucket/faces"], "s3://bucket/faces: compare works with files of this machine"),
        (["train", "s3://bucket/faces", "-o", "m.safetensors"], "train works with files of this machine"),
    ],
)
def test_what_is_no_path_of_this_machine_is_refused(run: Run, args: list[str], said: str) -> None:
    done = run(*args)
    assert done.exit_code == 2
    assert said in done.stderr


# the whole thing


def test_a_directory_goes_in_and_comes_back(run: Run, drawn_faces: Path, tmp_path: Path) -> None:
    out, back = tmp_path / "out.parquet", tmp_path / "back"
    command = [sys.executable, "-m", "zippy_batch", "archive", str(drawn_faces), str(out), "--workers", "1", "--json"]
    archived = subprocess.run(command, capture_output=True, text=True, check=False)
    assert archived.returncode == 0, archived.stderr
    assert json.loads(archived.stdout)["total"]["images"] == 40
    # what follows is the same in this process
    again = run("archive", drawn_faces, out, "--workers", 1)
    assert again.exit_code == 2
    assert "--overwrite" in again.stderr
    assert run("verify", out, "--against", drawn_faces).exit_code == 0
    assert "total" in run("stats", out).stdout
    restored = run("restore", out, back, "--reference", drawn_faces)
    assert restored.exit_code == 0, restored.stderr
    assert sorted(p.name for p in back.iterdir()) == sorted(p.name for p in drawn_faces.iterdir())


def test_a_job_takes_the_flags_of_its_command(
    calls: list[dict[str, Any]], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also over those of its preset, which looks for a cluster."""
    for given, address in (([], "auto"), (["--address", "local", "--workers", "1", "--quality", "5"], "local")):
        monkeypatch.setattr(sys, "argv", ["archive.py", "faces", "out", *given])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(root / "jobs" / "archive.py"), run_name="__main__")
        assert ended.value.code == 0
        assert (calls[-1]["run"].address, calls[-1]["options"].shard_size) == (address, 16384)
    assert (calls[-1]["run"].workers, calls[-1]["options"].quality) == (1, 5)


@pytest.mark.parametrize("job", ["archive", "restore"])
def test_a_job_runs_from_any_directory_and_names_its_preset(root: Path, tmp_path: Path, job: str) -> None:
    done = subprocess.run(
        [sys.executable, root / "jobs" / f"{job}.py", "--help"],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    assert f"zippy-batch {job}" in done.stdout


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"exact": True}, r"exact must be str \(auto, always, never\), not bool \(True\)"),
        ({"quality": "80"}, r"quality must be int, not str \('80'\)"),
        ({"quality": True}, "quality must be int, not bool"),
        ({"verify": 1}, "verify must be bool, not int"),
        ({"device": None}, r"device must be str \(auto, cpu, cuda\), not NoneType"),
    ],
)
def test_options_check_their_types_for_python(values: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        ArchiveOptions(**values)


def test_a_number_of_dB_may_be_whole_and_a_reference_a_string() -> None:
    assert ArchiveOptions(min_psnr=30).min_psnr == 30
    assert RestoreOptions(reference="faces").reference == Path("faces")  # type: ignore[arg-type]
