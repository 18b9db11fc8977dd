"""An archive as one page of HTML that needs nothing else: what it is, how its values are spread, how its pictures look.

    zb.open, stats -> _Spread -> sections of figures and tables, the rest of the page's bytes -> pictures

The same archive, originals and options give the same bytes. Everything in the page that comes from the archive is
escaped, and a policy in its head lets a browser load nothing and run no other script than the page's own.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zippy_batch.dataset import Archive
from zippy_batch.dataset import open as open_archive
from zippy_batch.errors import ArchiveError, UsageError, ZippyError
from zippy_batch.run import pipeline
from zippy_batch.run.report import ArchiveReport, Line, count_text, size_text
from zippy_batch.stores.object_path import Place, local_path
from zippy_batch.views.curves import curves, read_figures
from zippy_batch.views.markup import counts_of, histogram, number_text, share, table_of, text_of
from zippy_batch.views.web_image import WebImage, original_image, web_image

_PICTURE_SIDE, _PICTURE_BYTES = 320, 40_000
"""Larger pictures are made smaller, for the page to hold many."""
_SMALL_SIDE = 96
"""Pictures up to here are enlarged pixel for pixel."""
_READ_BYTES = 1 << 30
"""Of archives larger than this, the stored sizes of evenly chosen row groups are read."""
_MOST_SHARDS, _MOST_SIZES, _MOST_LABELS, _MOST_REASONS = 200, 12, 40, 40
_CODEC_NAMES = {"latent": "lossy", "exact": "exact: the very same file", "raw": "raw: kept as it is"}
LEAST_MEGABYTES = 0.1
_Section = tuple[str, str, str]
"""Name in links, title and content."""
MOST_DAMAGE = 20
"""Lines about what is damaged."""


@dataclass(frozen=True)
class PageOptions:
    images: int = 24
    """How many of the worst pictures, and of random ones, there are."""
    seed: int = 0
    """Chooses the random ones."""
    against: str | Path | None = None
    """Directory of the originals, shown beside the worst pictures."""
    compare: Path | None = None
    """Figures that `compare --json` wrote, drawn as curves."""
    megabytes: float = 5.0
    """Most millions of bytes of the page. Pictures are left out, and said to be, where there would be more."""

    def __post_init__(self) -> None:
        if self.images < 0:
            raise UsageError(f"--images is 0 or more, not {self.images}")
        if not self.megabytes >= LEAST_MEGABYTES:
            raise UsageError(f"--max-mb is {LEAST_MEGABYTES} or more, not {self.megabytes}")
        if self.against is not None and not local_path(self.against, "report").is_dir():
            raise UsageError(f"--against {self.against}: there is no such directory")


@dataclass(frozen=True)
class ReportPage:
    text: str
    damage: Sequence[str]
    """What of the archive was found damaged; the page says it too."""


def report_page(archive: str | Place, options: PageOptions, device: str = "auto") -> ReportPage:
    """The page of what can be read of an archive. Raises UsageError where there is none, and ArchiveError for what is
    none; a picture that cannot be had back is replaced by what is wrong with it."""
    figures = read_figures(options.compare) if options.compare else None
    report = pipeline.stats(archive, keep_going=True)
    with open_archive(archive, device, keep_going=True) as opened:
        columns = _Spread.of(opened)
        sections = [
            ("overview", "Overview", _overview(report)),
            ("spread", "How values are spread", _charts(columns)),
            ("codecs", "How files are stored", _codecs(report.total)),
            ("compare", "Beside other codecs", curves(figures) if figures else ""),
            ("labels", "Labels", _labels(columns)),
            ("shards", "Shards", _shards(report)),
            ("made", "How it was made", _made(opened, report)),
        ]
        sections = [section for section in sections if section[2]]
        while True:
            damage = opened.damage
            text = _page(report, _with_pictures(opened, options, report, sections))
            # pictures may be damaged as well: the page has less room for them where that is to be said
            if damage == opened.damage:
                return ReportPage(text, damage)


def _with_pictures(
    archive: Archive, options: PageOptions, report: ArchiveReport, sections: Sequence[_Section]
) -> list[_Section]:
    """Add sections of damage and of pictures, as many as there is room for."""
    damage = archive.damage
    first: list[_Section] = [("damage", "Damage", damage_list(damage))] if damage else []
    rest = len(_page(report, [*first, *sections]).encode())
    pictures = _Pictures(archive, options, int(options.megabytes * 1e6) - rest)
    shown: list[_Section] = [
        ("worst", "The worst pictures", pictures.worst()),
        ("random", "Some others", pictures.random()),
    ]
    return [*first, *sections[:1], *shown, *sections[1:]]


def damage_list(damage: Sequence[str]) -> str:
    """What was found damaged, and what to do."""
    more = len(damage) - MOST_DAMAGE
    items = [*damage[:MOST_DAMAGE], *([f"and {more} more"] if more > 0 else [])]
    said = "".join(f"<li>{text_of(one)}</li>" for one in items)
    return (
        "<p>This archive is damaged; here is what can be read of it. <code>zippy-batch verify</code> names every "
        f"damaged row, and <code>zippy-batch restore --keep-going</code> brings back the others.</p><ul>{said}</ul>"
    )


@dataclass(frozen=True)
class _Spread:
    """Values of all files, N of them; NaN stands for what is not known."""

    psnr: NDArray[np.float64]
    ssim: NDArray[np.float64]
    source_bytes: NDArray[np.float64]
    stored_bytes: NDArray[np.float64]
    """Of the files in row groups that were read: all of them but in large archives, and but for damage."""
    sizes: Counter[tuple[int, int]]
    """Files by width and height in pixels."""
    labels: Counter[str | None]

    @classmethod
    def of(cls, archive: Archive) -> _Spread:
        rows = archive.rows()

        def numbers(name: str) -> NDArray[np.float64]:
            found = rows.column(name)
            return np.fromiter((np.nan if one is None else one for one in found), np.float64, len(found))

        sides = zip(rows.column("width"), rows.column("height"), strict=True)
        return cls(
            numbers("psnr"),
            numbers("ssim"),
            numbers("source_bytes"),
            _stored_bytes(archive),
            Counter((width, height) for width, height in sides if width and height),
            Counter(rows.labels),
        )


def _stored_bytes(archive: Archive) -> NDArray[np.float64]:
    import pyarrow.compute as pc

    every = 1 + archive._opened().size_bytes // _READ_BYTES
    found = []
    for i, (_, read) in enumerate(archive._group_tables()):
        if i % every == 0:
            try:
                table = read(("payload", "raw"))
            except ArchiveError as error:
                archive._damage[str(error)] = None
                continue
            length = [pc.fill_null(pc.binary_length(table[name]), 0) for name in ("payload", "raw")]
            found.append(np.asarray(pc.add(*length).to_numpy(), np.float64))
    return np.concatenate(found) if found else np.zeros(0)


# ---- sections ----


def _overview(report: ArchiveReport) -> str:
    total, quality = report.total, report.total.quality
    tiles = [
        ("Files", f"{total.images:,}", f"in {count_text(len(report.shards), 'shard')}"),
        ("Originals", size_text(total.source_bytes), _each(total.source_bytes, total.images)),
        ("Archive", size_text(total.archive_bytes), _each(total.archive_bytes, total.images)),
    ]
    if total.ratio is not None:
        tiles.append(
            ("Smaller by", f"{total.ratio:.2f} ×", f"{share(total.archive_bytes, total.source_bytes)} is left")
        )
    if total.bits_per_pixel is not None:
        tiles.append(("Bits per pixel", f"{total.bits_per_pixel:.3f}", "of the lossy files"))
    if quality.images:
        rest = f"worst {quality.psnr_worst_db:.1f}, 5 % below {quality.psnr_p5_db:.1f}"
        tiles.append(("PSNR", f"{quality.psnr_mean_db:.2f} dB", rest))
        tiles.append(("SSIM", f"{quality.ssim_mean:.4f}", f"worst {quality.ssim_worst:.4f}"))
    tiles.append(("Kept as they are", f"{total.raw_images:,}", share(total.raw_images, total.images)))
    cells = "".join(f"<div><dt>{name}</dt><dd>{value}<small>{note}</small></dd></div>" for name, value, note in tiles)
    return f'<dl class="tiles">{cells}</dl>'


def _each(size_bytes: int, files: int) -> str:
    return f"{size_text(round(size_bytes / files))} a file" if files else "-"


def _size(value: float) -> str:
    return size_text(round(value))


def _charts(columns: _Spread) -> str:
    read = len(columns.stored_bytes)
    note = "" if read == len(columns.source_bytes) else f"Of {read:,} files."
    figures = [
        histogram("Stored bytes", columns.stored_bytes, _size, note),
        histogram("Bytes of the originals", columns.source_bytes[np.isfinite(columns.source_bytes)], _size),
        histogram("PSNR", columns.psnr[np.isfinite(columns.psnr)], number_text(2, " dB"), "Higher is better."),
        histogram("SSIM", columns.ssim[np.isfinite(columns.ssim)], number_text(3), "1 is the original."),
    ]
    if len(columns.sizes) > _MOST_SIZES:
        sides = np.repeat(np.array([max(one) for one in columns.sizes], float), [*columns.sizes.values()])
        figures.append(histogram("Longer side", sides, number_text(0, " px")))
    elif columns.sizes:
        sizes = {f"{width} × {height}": n for (width, height), n in columns.sizes.items()}
        figures.append(f'<figure class="chart"><h3>Image size</h3>{counts_of("pixels", sizes, _MOST_SIZES)}</figure>')
    charts = "".join(figures)
    return f'<div class="charts">{charts}</div>' if charts else ""


def _codecs(total: Line) -> str:
    kinds = [
        ("latent", total.lossy_images, total.lossy_source_bytes, total.lossy_bytes),
        ("exact", total.exact_images, total.exact_source_bytes, total.exact_bytes),
        ("raw", total.raw_images, total.raw_bytes, total.raw_bytes),
    ]
    rows = [
        (_CODEC_NAMES[codec], f"{files:,}", share(files, total.images), size_text(source), size_text(stored))
        for codec, files, source, stored in kinds
        if files
    ]
    out = table_of(("codec", "files", "share", "originals", "stored"), rows)
    if total.raised:
        out += f"<p>{count_text(total.raised, 'picture')} took a higher quality than was asked for.</p>"
    if total.kept_raw:
        out += f"<h3>Why files were kept as they are</h3>{counts_of('reason', total.kept_raw, _MOST_REASONS)}"
    return out


def _labels(columns: _Spread) -> str:
    known = {label: n for label, n in columns.labels.items() if label is not None}
    if not known:
        return ""
    without = columns.labels[None]
    more = f" {count_text(without, 'file')} without one." if without else ""
    return f"<p>{count_text(len(known), 'label')}.{more}</p>{counts_of('label', known, _MOST_LABELS)}"


def _shards(report: ArchiveReport) -> str:
    rows = []
    for line in report.shards[:_MOST_SHARDS]:
        quality = line.quality
        decibels = [quality.psnr_mean_db, quality.psnr_worst_db]
        rows.append(
            (
                f"{line.shard}",
                f"{line.images:,}",
                size_text(line.source_bytes),
                size_text(line.archive_bytes),
                "-" if line.ratio is None else f"{line.ratio:.2f}",
                *("-" if value is None else f"{value:.2f}" for value in decibels),
                f"{line.exact_images:,}",
                f"{line.raw_images:,}",
            )
        )
    head = ("shard", "files", "originals", "archive", "ratio", "PSNR dB", "worst", "exact", "raw")
    more = len(report.shards) - len(rows)
    note = f"<p class='note'>and {count_text(more, 'more shard')}</p>" if more else ""
    return table_of(head, rows) + note


def _made(archive: Archive, report: ArchiveReport) -> str:
    given = {"format version": str(archive.info.format_version)}
    given |= {f"model, {_CODEC_NAMES.get(codec, codec).split(':')[0]}": sha for codec, sha in report.models.items()}
    given |= {name: json.dumps(value, ensure_ascii=False) for name, value in sorted(report.options.items())}
    rows = [(text_of(name), text_of(value)) for name, value in given.items()]
    return table_of(("option", "value"), rows, names=2)


# ---- pictures ----


class _Pictures:
    """Pictures of an archive as figures, as long as there is room for them."""

    def __init__(self, archive: Archive, options: PageOptions, room_bytes: int) -> None:
        self._archive, self._options, self._room = archive, options, room_bytes

    def worst(self) -> str:
        psnr = np.array(self._archive.rows().column("psnr"), np.float64)
        known = np.flatnonzero(np.isfinite(psnr))
        if not len(known):
            return "<p>No file has a measured loss: there is no worst one.</p>"
        numbers = known[np.argsort(psnr[known], kind="stable")][: self._options.images].tolist()
        against = None if self._options.against is None else Path(self._options.against)
        beside = "each beside its original" if against else "as they come back"
        return f"<p>By PSNR, {beside}.</p>{self._list(numbers, against)}"

    def random(self) -> str:
        count = min(self._options.images, len(self._archive))
        numbers = sorted(random.Random(self._options.seed).sample(range(len(self._archive)), count))
        said = f"<p>{count_text(count, 'file')} at random (seed {self._options.seed}), as they come back.</p>"
        return said + self._list(numbers, None)

    def _list(self, numbers: Sequence[int], against: Path | None) -> str:
        items = "".join(f"<li>{self._figure(number, against)}</li>" for number in numbers)
        return f'<ul class="pictures{" pairs" if against else ""}">{items}</ul>'

    def _figure(self, number: int, against: Path | None) -> str:
        try:
            file = self._archive[number]
        except ZippyError as error:
            return f'<figure><span class="none">{text_of(str(error))}</span></figure>'
        facts = self._facts(file.columns)
        about = f'<figcaption class="about"><strong>{text_of(file.path)}</strong>{facts}</figcaption>'
        cells = [("restored", _restored(file.bytes))]
        if against:
            cells.insert(0, ("original", original_image(against, file.path, _PICTURE_SIDE, _PICTURE_BYTES)))
        made = f"{_button(cells, file.path)}{about}"
        if len(made) + _ITEM_BYTES > self._room:
            left_out: list[tuple[str, WebImage | str]] = [
                ("restored", "left out: the page would be too large, see --max-mb")
            ]
            made = f"{_button(left_out, file.path)}{about}"
        self._room -= len(made) + _ITEM_BYTES
        return f"<figure>{made}</figure>"

    def _facts(self, columns: Any) -> str:
        psnr, ssim, label = columns["psnr"], columns["ssim"], columns["label"]
        facts = [f"{psnr:.2f} dB"] if psnr is not None else []
        facts += [f"SSIM {ssim:.3f}"] if ssim is not None else []
        facts += [f"{columns['width']} × {columns['height']}"] if columns["width"] else []
        facts.append("lossy" if columns["codec"] == "latent" else columns["codec"])
        stored = columns["payload"] if columns["raw"] is None else columns["raw"]
        facts.append(f"{size_text(columns['source_bytes'])} in {size_text(len(stored or b''))}")
        facts += [text_of(columns["raw_reason"])] if columns["raw_reason"] else []
        facts += [f"label {text_of(label)}"] if label is not None else []
        return " · ".join(facts)


_ITEM_BYTES = 40
"""Of the elements around a figure."""


def _restored(file: Any) -> WebImage | str:
    try:
        return web_image(file(), _PICTURE_SIDE, _PICTURE_BYTES)
    except ZippyError as error:
        return str(error)


def _button(cells: Sequence[tuple[str, WebImage | str]], path: str) -> str:
    """Pictures side by side that open together; what there is none of is said in its place."""
    tags = len(cells) > 1
    inner = "".join(
        f"<span>{_image(cell, f'{what}: {path}')}{f'<b>{what}</b>' if tags else ''}</span>" for what, cell in cells
    )
    if all(isinstance(cell, str) for _, cell in cells):
        return inner
    return f'<button type="button" class="pic">{inner}</button>'


def _image(cell: WebImage | str, alt: str) -> str:
    if isinstance(cell, str):
        return f'<span class="none">{text_of(cell)}</span>'
    small = ' class="small"' if max(cell.width, cell.height) <= _SMALL_SIDE else ""
    return f'<img{small} src="{cell.data_uri}" width="{cell.width}" height="{cell.height}" alt="{text_of(alt)}">'


# ---- the page around them ----


def _page(report: ArchiveReport, sections: Sequence[_Section]) -> str:
    return "".join(_pieces(report, sections))


def _pieces(report: ArchiveReport, sections: Sequence[_Section]) -> Iterator[str]:
    style, script = asset("page.css"), asset("report.js")
    name = text_of(report.path.rstrip("/").rpartition("/")[2] or report.path)
    total = report.total
    policy = (
        f"default-src 'none'; img-src data:; style-src '{hash_of(style)}'; script-src '{hash_of(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    yield (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1"><link rel="icon" href="data:,">'
        f"<title>{name}</title><style>{style}</style></head><body>"
        f'<a class="skip" href="#main">Skip to the content</a><header><h1>{name}</h1>'
        f"<p>An archive of zippy-batch: {count_text(total.images, 'file')} of {size_text(total.source_bytes)} in "
        f"{size_text(total.archive_bytes)}.</p><nav aria-label='Sections'><ul>"
    )
    yield "".join(f'<li><a href="#{key}">{html.escape(title)}</a></li>' for key, title, _ in sections)
    yield '</ul></nav></header><main id="main">'
    for key, title, content in sections:
        yield f'<section aria-labelledby="{key}"><h2 id="{key}">{html.escape(title)}</h2>{content}</section>'
    yield (
        f"</main><footer><p>{text_of(report.path)}</p></footer>"
        '<dialog aria-label="Picture"><div class="pics"></div><p aria-live="polite"></p><div class="row">'
        '<button type="button" class="plain before">Previous</button>'
        '<button type="button" class="plain after">Next</button>'
        '<button type="button" class="plain close">Close</button></div></dialog>'
        f"<script>{script}</script></body></html>\n"
    )


def asset(name: str) -> str:
    """A file beside this module, as text."""
    return (resources.files(__package__) / name).read_text(encoding="utf-8")


def hash_of(text: str) -> str:
    """Name that a Content-Security-Policy has for an inline script or style."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode('ascii')}"
