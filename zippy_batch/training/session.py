"""`zippy-batch train`: sources -> pools -> network, trained -> model file -> what it saves.

OUT.safetensors          the model, written early and whenever the held-out images say that it is better
OUT.training/            the run: run.json, pools/, checkpoint.pt, log.txt; the same command goes on from it. Archives
                         among the sources are restored to sources/; workers on Ray are heard by status.jsonl and
                         stopped by a file called stop
"""

from __future__ import annotations

import json
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from zippy_batch.codecs.model_file import Model, load_model, model_from_bytes
from zippy_batch.config import RunOptions, TrainOptions
from zippy_batch.errors import ModelError, OutputExists, StagingMismatch, UsageError
from zippy_batch.run.executor import choose_training_layout, settle_device
from zippy_batch.stores.object_path import local_path
from zippy_batch.training.ray_workers import work_on_ray
from zippy_batch.training.run import TrainingStatus, replace_file
from zippy_batch.training.savings import Gain, measure_gain
from zippy_batch.training.sources import RESTORED, Sources, gather
from zippy_batch.training.train_job import TrainJob

_STAMP = "run.json"
_BUILT_IN = {"latent": "faces", "exact": "exact"}
_EARLY_SHARE = 0.2
"""Share of the run's minutes between two early exports,"""
_LEAST_EARLY_MINUTES = 5.0
"""or so many, because an export takes most of a minute."""


@dataclass(frozen=True)
class TrainReport:
    model: Path
    model_id: str
    model_bytes: int
    codec: str
    minutes: float
    steps: int
    images: int
    """Images to train on."""
    held_out: int
    skipped: int
    """Files that `archive` would refuse or keep as they are."""
    against: str
    """The model that it was compared with,"""
    against_bytes: int
    """and its size where archives carry it too; 0 for one that is built in."""
    gain: Gain | None

    exit_code = 0

    def to_dict(self) -> dict[str, Any]:
        fields = {**asdict(self), "model": str(self.model)}
        if self.gain is not None:
            fields["gain"] |= {"saved_bytes": self.gain.saved_bytes, "pays_from_images": self._pays_from()}
        return fields

    def _pays_from(self) -> int | None:
        return self.gain.pays_from(self.model_bytes - self.against_bytes) if self.gain else None

    def lines(self, columns: int | None = None) -> list[str]:
        """Text for people; nothing in it depends on the columns of a terminal."""
        out = [
            f"{self.model}: {self.codec} codec, {self.model_bytes / 1e6:.1f} MB, {self.model_id}",
            f"trained for {self.minutes:.1f} minutes, {self.steps} steps, on {self.images} images "
            f"({self.held_out} held out, {self.skipped} skipped)",
        ]
        if self.gain is None:
            return [*out, "nothing that was held out could be coded at a quality that both models reach: no comparison"]
        g = self.gain
        at = "" if g.psnr_db is None else f" at {g.psnr_db:.2f} dB"
        change = 100 * (g.after_bytes / g.before_bytes - 1)
        out.append(
            f"on {g.images} held-out images{at}: {g.after_bytes:.1f} B per image instead of {g.before_bytes:.1f} B "
            f"with {self.against} ({change:+.1f} %)"
        )
        pays = self._pays_from()
        if pays is None:
            return [*out, f"it saves nothing there: keep {self.against}, or train longer"]
        likewise = f", as it would carry {self.against}" if self.against_bytes else ""
        return [*out, f"an archive carries the model{likewise}; it pays from {pays:,} images on"]


def train(
    wanted: Sequence[str | Path],
    output: Path,
    options: TrainOptions | None = None,
    run_options: RunOptions | None = None,
    watch: Callable[[str], None] = lambda line: None,
    restart: bool = False,
) -> TrainReport:
    """Train a model on images, or go on where an earlier run of the same was interrupted.

    `watch` is told where the run stands, a line at a time. Raises UsageError for options, paths or images that will not
    do, ModelError when training diverges, and KeyboardInterrupt when interrupted: the checkpoint and the best model so
    far are written then.
    """
    options, run_options = options or TrainOptions(), run_options or RunOptions()
    # workers on Ray have other current directories
    roots, output = [local_path(one, "train").resolve() for one in wanted], output.resolve()
    options = replace(options, name=options.name or output.stem)
    start = load_model(options.start) if options.start else None
    run = output.with_suffix(".training")
    _refuse_unsuitable(output, run, options, start, run_options.overwrite)
    sources = gather(roots, run)
    if restart:
        _forget(run)
    _claim(run, roots, options, start, sources)
    device = settle_device(options.device, run_options.address)
    layout = choose_training_layout(device, run_options)
    job = TrainJob(options, run, sources.training, dict(sources.sizes), sources.digest, start, device)
    watch(
        f"{len(sources.training)} images to train on, {len(sources.held_out)} held out, {sources.skipped} skipped; "
        f"{options.codec} codec from {start.name if start else 'nothing'}, on {job.device}"
    )
    task = job.task()
    exporter = _Exporter(job, output, [root.name for root in roots], watch)
    with _interruptible(watch) as is_stopped:
        if layout.on_ray:
            work_on_ray(job, layout, watch, exporter.look, is_stopped)
        else:
            job.work(task, exporter.look, is_stopped)
        exporter.export()
        if is_stopped():
            watch(f"{output}: the best so far")
            raise KeyboardInterrupt
    watch("measuring what it saves on the held-out images")
    return _report(job, output, sources, start)


def _refuse_unsuitable(output: Path, run: Path, options: TrainOptions, start: Model | None, overwrite: bool) -> None:
    """Raises UsageError for an output that cannot be written, and for a model that cannot be started from."""
    if output.suffix != ".safetensors":
        raise UsageError(f"{output}: the name of a model file ends in .safetensors")
    if not output.parent.is_dir():
        raise UsageError(f"{output.parent}: no such directory; make it first")
    is_run = (run / _STAMP).is_file()
    if run.exists() and not is_run and not _is_empty(run):
        raise UsageError(f"{run} is in the way, and no run of this program; choose another name for {output}")
    if output.is_dir() or (output.exists() and not is_run and not overwrite):
        raise OutputExists(f"{output} is there already; --overwrite replaces it if it is a file")
    if start and start.codec != options.codec:
        raise UsageError(f"model {start.name!r} is of the codec {start.codec}, not {options.codec}")
    if start and options.start and output.exists() and Path(options.start).resolve() == output:
        raise UsageError(f"{output} cannot be both what to start from and what to write")


class _Exporter:
    """Writes the model file at the end, and early where held-out images say that the weights are the best so far."""

    def __init__(self, job: TrainJob, output: Path, sources: Sequence[str], watch: Callable[[str], None]) -> None:
        self._job, self._output, self._sources, self._watch = job, output, sources, watch
        self._exported_minutes = 0.0

    def export(self) -> None:
        replace_file(self._output, self._job.export(self._sources))

    def look(self, status: TrainingStatus) -> None:
        self._watch(status.line())
        total_minutes = self._job.options.minutes
        pause_minutes = max(_EARLY_SHARE * total_minutes, _LEAST_EARLY_MINUTES)
        is_due = status.minutes - self._exported_minutes >= pause_minutes
        if is_due and status.is_best and status.minutes < total_minutes:
            self._exported_minutes = status.minutes
            try:
                self.export()
            except (ModelError, OSError) as error:
                self._watch(f"{self._output} could not be written early, the run goes on: {error}")
            else:
                self._watch(f"{self._output}: the best so far")


def _report(job: TrainJob, output: Path, sources: Sources, start: Model | None) -> TrainReport:
    data = output.read_bytes()
    model = model_from_bytes(data)
    before = start or load_model(_BUILT_IN[job.options.codec])
    training = model.card["training"]
    return TrainReport(
        model=output,
        model_id=model.id,
        model_bytes=len(data),
        codec=model.codec,
        minutes=training["minutes"],
        steps=training["steps"],
        images=len(sources.training),
        held_out=len(sources.held_out),
        skipped=sources.skipped,
        against=before.name,
        against_bytes=0 if before.builtin else len(before.data),
        gain=measure_gain(before, model, sources.held_out),
    )


def _is_empty(run: Path) -> bool:
    """Whether a run can begin there: what an earlier attempt restored from archives is no run yet."""
    return run.is_dir() and all(entry.name == RESTORED for entry in run.iterdir())


def _forget(run: Path) -> None:
    """Take away a run, and leave what was restored from archives for the next one."""
    for entry in run.iterdir() if run.is_dir() else ():
        if entry.is_dir() and entry.name != RESTORED:
            shutil.rmtree(entry)
        elif entry.is_file():
            entry.unlink()


def _claim(run: Path, roots: Sequence[Path], options: TrainOptions, start: Model | None, sources: Sources) -> None:
    """Make the run's directory, or see that it is of the same run. Raises StagingMismatch."""
    # a run may be made longer, and its learning rate lowered, when it goes on
    ours: dict[str, Any] = {
        k: v for k, v in asdict(options).items() if k not in ("minutes", "rate", "device", "start", "notice", "name")
    }
    ours |= {"sources": [str(root) for root in roots], "from": start.id if start else None}
    images = len(sources.training) + len(sources.held_out)
    ours["files"] = {"images": images, "bytes": sources.bytes, "digest": sources.digest}
    stamp = run / _STAMP
    if stamp.exists():
        try:
            # what the version that began the run did not know yet, it did as is done by default
            theirs = asdict(TrainOptions()) | {"files": ours["files"]} | json.loads(stamp.read_text())
        except (ValueError, TypeError) as error:
            raise StagingMismatch(f"{stamp} cannot be read ({error}); --restart begins anew") from error
        differing = sorted(k for k in ours if ours[k] != theirs.get(k))
        if differing == ["files"]:
            now, then = (f"{f['images']} images of {f['bytes']} bytes" for f in (ours["files"], theirs["files"]))
            raise StagingMismatch(
                f"{run} is of a run on other files: {now} are there now, {then} were there then, and paths, sizes or "
                "times differ; --restart begins anew, and another -o with --from goes on from what was learnt"
            )
        if differing:
            raise StagingMismatch(
                f"{run} is of a run with other {', '.join(differing)}; --restart begins anew, or write to another file"
            )
    run.mkdir(exist_ok=True)
    replace_file(stamp, json.dumps(ours, indent=1).encode())


@contextmanager
def _interruptible(watch: Callable[[str], None]) -> Iterator[Callable[[], bool]]:
    """The first Ctrl-C lets the step end and everything be saved; the second one does not wait."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop.is_set
        return

    def heed(number: int, frame: Any) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        watch("stopping: saving what is there; press Ctrl-C again not to wait")

    before = signal.signal(signal.SIGINT, heed)
    try:
        yield stop.is_set
    finally:
        signal.signal(signal.SIGINT, before)
