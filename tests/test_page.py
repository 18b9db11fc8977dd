"""What pages about an archive say, that nothing of an archive gets out of its place, and a browser shows them."""

from __future__ import annotations

import html
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from browser import EVIL, Tab, chromium, run
from PIL import Image
from rows import info_for, labelled, mixed_rows, raw_row
from synthetic_faces import draw_faces

import zippy_batch as zb
from zippy_batch.archives.schema import Row
from zippy_batch.archives.writer import write_part
from zippy_batch.errors import UsageError
from zippy_batch.views.markup import histogram, text_of
from zippy_batch.views.report_page import PageOptions, hash_of, report_page
from zippy_batch.views.web_image import WebImage, web_image


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Faces of two labels, a picture with alpha, a text file, and names that would be markup."""
    root = tmp_path_factory.mktemp("page") / "faces"
    draw_faces(root / "anna", 9)
    draw_faces(root / EVIL.replace("/", ""), 3, seed=1)
    Image.new("RGBA", (30, 20), (200, 0, 0, 90)).save(root / "anna" / "clear.png")
    (root / "anna" / "notes.txt").write_text("hello")
    return root


@pytest.fixture(scope="module")
def archive(faces: Path) -> Path:
    path = faces.parent / "faces.parquet"
    zb.archive(faces, path, quality=40, labels="folders", workers=1, exact="never", device="cpu")
    return path


def page_text(archive: Path, options: PageOptions) -> str:
    return report_page(archive, options).text


class Tags(HTMLParser):
    """Elements of a page, with their attributes; text by element."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def test_the_page_says_what_is_in_the_archive(archive: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    code, said = run("report", archive, "-o", page)
    assert code == 0, said
    text = page.read_text()
    for part in ("14 files", "faces.parquet", "PSNR", "alpha channel", "lossy", "2 labels", "anna/face_00003.jpg"):
        assert part in text, part
    assert page.stat().st_size < 5e6
    assert str(page) in said


def test_everything_of_the_page_is_in_it_and_nothing_runs_that_came_from_the_archive(
    archive: Path, faces: Path
) -> None:
    page = page_text(archive, PageOptions(against=faces))
    tags = Tags(page)
    assert EVIL not in page
    assert html.escape(EVIL.replace("/", "")) in page
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.S)
    (style,) = re.findall(r"<style>(.*?)</style>", page, re.S)
    (policy,) = (one["content"] or "" for one in tags.named("meta") if "http-equiv" in one)
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert hash_of(script) in policy
    assert hash_of(style) in policy
    assert len(tags.named("script")) == 1
    assert not [name for _, one in tags.tags for name in one if name.startswith("on") or name == "style"]
    links = [one.get("src") or one.get("href") or "" for _, one in tags.tags if "src" in one or "href" in one]
    assert all(link.startswith(("data:", "#")) for link in links)
    targets = {one.get("id") for _, one in tags.tags}
    assert {link[1:] for link in links if link.startswith("#")} <= targets


def test_every_picture_has_a_text_and_the_worst_stand_beside_their_originals(archive: Path, faces: Path) -> None:
    with_originals = Tags(page_text(archive, PageOptions(against=faces, images=5))).named("img")
    assert all(one["alt"] for one in with_originals)
    originals = [one for one in with_originals if (one["alt"] or "").startswith("original: ")]
    worst = zb.open(archive).rows("psnr is not None")
    names = [path for _, path in sorted(zip(worst.column("psnr"), worst.paths, strict=True))[:5]]
    assert [one["alt"] for one in originals] == [f"original: {name}" for name in names]


def test_the_same_archive_gives_the_same_page_and_a_seed_other_pictures(archive: Path) -> None:
    page = page_text(archive, PageOptions(images=3))
    assert page == page_text(archive, PageOptions(images=3))
    assert page != page_text(archive, PageOptions(images=3, seed=1))


def test_a_page_has_no_more_bytes_than_it_may_and_says_what_is_left_out(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = []
    for i in range(8):
        out = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (100, 100, 3), np.uint8)).save(out, "PNG")
        rows.append(raw_row(b"%d.png" % i, out.getvalue()))
    archive = stored(tmp_path / "large.parquet", rows)
    whole = page_text(archive, PageOptions())
    assert len(whole.encode()) > 300_000
    assert "left out" not in whole
    small = page_text(archive, PageOptions(megabytes=0.1))
    assert 60_000 < len(small.encode()) <= 100_000
    assert 0 < small.count("left out: the page would be too large") < 8


def test_originals_that_are_missing_or_no_files_are_said_to_be(archive: Path, faces: Path, tmp_path: Path) -> None:
    (tmp_path / "anna" / "face_00000.jpg").mkdir(parents=True)
    page = page_text(archive, PageOptions(against=tmp_path))
    assert page.count("there is no such original") == 12


def stored(path: Path, rows: list[Row]) -> Path:
    write_part(path, rows, info_for(len(rows)))
    return path


def test_an_archive_of_anything_has_a_page(tmp_path: Path) -> None:
    archive = stored(tmp_path / "odd.parquet", labelled(mixed_rows(40)))
    page = page_text(archive, PageOptions(images=40))
    assert "\\xff\\xfe" in page
    assert "müde Gesichter/\\x0a" in page
    page.encode()


def test_an_archive_of_nothing_has_a_page(tmp_path: Path) -> None:
    page = page_text(stored(tmp_path / "none.parquet", []), PageOptions())
    assert "0 files" in page


def test_no_path_of_an_archive_leaves_the_directory_of_originals(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(b"")
    (tmp_path / "in").mkdir()
    row = replace(mixed_rows(1)[0], path=b"../secret.png")
    page = page_text(stored(tmp_path / "up.parquet", [row]), PageOptions(against=tmp_path / "in"))
    assert "not looked for: &#x27;..&#x27; in the path" in page


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "an empty file"),
        (b"<svg onload='alert(1)'/>", "not a picture"),
        (b"\xff\xd8\xff\xe0 and no more", "cannot be decoded"),
    ],
)
def test_what_is_no_picture_is_said_to_be_none(data: bytes, said: str) -> None:
    assert web_image(data, 100, 1000) == said


def test_a_picture_keeps_its_bytes_unless_it_is_large_or_has_exif(tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    Image.new("RGB", (40, 20), "red").save(path)
    plain = web_image(path.read_bytes(), 100, 10_000)
    assert isinstance(plain, WebImage)
    assert plain.data == path.read_bytes()
    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", (400, 200), "red").save(path, exif=exif)
    turned = web_image(path.read_bytes(), 100, 10_000)
    assert isinstance(turned, WebImage)
    assert (turned.width, turned.height) == (50, 100)
    assert b"Exif" not in turned.data


def test_text_is_escaped_short_and_on_one_line() -> None:
    assert text_of("<b>\n\u202e'\"&") == "&lt;b&gt;\\x0a\\u202e&#x27;&quot;&amp;"
    assert len(text_of("x" * 70_000)) < 400


def test_a_histogram_counts_every_value_and_has_a_text() -> None:
    values = np.array([1.0, 1.0, 2.0, 5000.0])
    figure = histogram("Bytes", values, str)
    assert sum(int(n) for n in re.findall(r": (\d+) files?</title>", figure)) == 4
    assert 'aria-label="Bytes of 4 files: from 1.0 to 5000.0' in figure
    assert ": 3 files</title>" in histogram("Side", np.full(3, 42.0), str)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("-o", "page.txt"), "ends in .html"),
        (("-o", "nowhere/page.html"), "there is no directory nowhere"),
        (("-o", "page.html", "--images", -1), "--images is 0 or more"),
        (("-o", "page.html", "--max-mb", "nan"), "--max-mb is 0.1 or more"),
        (("-o", "page.html", "--against", "nowhere"), "there is no such directory"),
        (("-o", "there.html"), "there.html exists"),
    ],
)
def test_what_cannot_be_is_one_line(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: tuple[object, ...], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.html").write_text("mine")
    code, output = run("report", archive, *args)
    assert code == 2
    assert said in output
    assert output.count("\n") == 1
    assert [one.name for one in tmp_path.iterdir()] == ["there.html"]
    assert (tmp_path / "there.html").read_text() == "mine"


def test_a_page_is_replaced_when_asked(archive: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text("old")
    assert run("report", archive, "-o", page, "--overwrite", "--images", 0)[0] == 0
    assert "14 files" in page.read_text()


FIGURES = {
    "images": 40,
    "rows": [
        {"contender": name, "stored_bytes_per_image": size, "psnr_db": psnr, "ssim": ssim, "ssimulacra2": None,
         "exact": psnr is None, "better_by_psnr": True}
        for name, size, psnr, ssim in (
            ("source", 900.0, None, None), ("jpeg", 300.0, 28.0, 0.8), ("jpeg", 500.0, 31.0, 0.9),
            ("zippy-batch", 100.0, 28.0, 0.8), (EVIL, 400.0, 27.0, 0.7),
        )
    ],
}  # fmt: skip


def test_curves_of_a_comparison_are_drawn_where_they_were_measured(archive: Path, tmp_path: Path) -> None:
    figures, page = tmp_path / "figures.json", tmp_path / "page.html"
    figures.write_text(json.dumps(FIGURES))
    code, said = run("report", archive, "-o", page, "--images", 2, "--compare", figures)
    assert code == 0, said
    tags = Tags(page.read_text())
    assert len(tags.named("polyline")) == 6
    assert "PSNR, dB over bytes of zippy-batch, jpeg" in page.read_text()
    assert EVIL not in page.read_text()
    assert html.escape(EVIL) in page.read_text()


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "{}", '{"rows": [], "images": 1}', '{"rows": [1], "images": 1}', '{"rows": 7, "images": 1}',
        json.dumps(FIGURES | {"images": "<b>"}), json.dumps(FIGURES).replace("300.0", "NaN"),
        json.dumps(FIGURES).replace("300.0", "-1"), json.dumps(FIGURES).replace("28.0", '"x"'), "[" * 100_000,
    ],
)  # fmt: skip
def test_what_is_no_comparison_is_refused_in_a_line(archive: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "figures.json").write_text(text)
    code, said = run("report", archive, "-o", tmp_path / "page.html", "--compare", tmp_path / "figures.json")
    assert code == 2
    assert "expected the figures that zippy-batch compare --json writes" in said
    assert not (tmp_path / "page.html").exists()


# ---- in a browser ----


PROBE = """addEventListener("load", () => { const images = [...document.images];
document.title = JSON.stringify({images: images.length, broken: images.filter((one) => !one.naturalWidth).length,
hacked: "hacked" in window, wide: document.documentElement.scrollWidth > innerWidth}); });"""


def test_a_browser_shows_every_picture_and_complains_of_nothing(archive: Path, faces: Path, tmp_path: Path) -> None:
    page = page_text(archive, PageOptions(against=faces))
    # the same page with a script more, which its policy is told of
    probed = page.replace("script-src '", f"script-src '{hash_of(PROBE)}' '", 1)
    probed = probed.replace("</body>", f"<script>{PROBE}</script></body>")
    (tmp_path / "page.html").write_text(probed)
    done = chromium(f"--user-data-dir={tmp_path / 'profile'}", "--window-size=500,900", "--dump-dom",
                    (tmp_path / "page.html").as_uri())  # fmt: skip
    assert "CONSOLE" not in done.stderr
    title = re.search(r"<title>(.*?)</title>", done.stdout)
    assert title, done.stdout[:500]
    found = json.loads(html.unescape(title[1]))
    # the worst 12 beside their originals, and 14 of which one is a text
    assert found == {"images": 12 * 2 + 13, "broken": 0, "hacked": False, "wide": False}


SHOWN = "document.querySelector('dialog[open] p')?.textContent ?? ''"
IMAGES = "document.querySelectorAll('dialog[open] img').length"
FOCUSED = "[...document.querySelectorAll('button.pic')].indexOf(document.activeElement)"


def test_the_enlarged_view_is_used_by_the_keyboard_alone(archive: Path, faces: Path, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(page_text(archive, PageOptions(against=faces, images=3)))
    with Tab(tmp_path / "profile", (tmp_path / "page.html").as_uri()) as tab:
        last = tab.ask("document.querySelectorAll('button.pic').length") - 1
        tab.ask("document.querySelector('button.pic').focus()")
        tab.press("Enter")
        tab.wait(f"{IMAGES} === 2 && ({SHOWN})")
        first = tab.ask(SHOWN)
        tab.press("ArrowRight")
        tab.wait(f"({SHOWN}) !== {json.dumps(first)}")
        tab.press("ArrowLeft")
        tab.wait(f"({SHOWN}) === {json.dumps(first)}")
        # from the first to the last, which is one of those without their originals
        tab.press("ArrowLeft")
        tab.wait(f"{IMAGES} === 1")
        tab.press("Escape")
        # the picture that was shown has the focus, and opens again
        tab.wait(f"({SHOWN}) === '' && {FOCUSED} === {last}")
        tab.press("Enter")
        tab.wait(f"{IMAGES} === 1 && ({SHOWN})")
        tab.press("ArrowRight")
        tab.wait(f"({SHOWN}) === {json.dumps(first)}")


def test_options_of_a_page_are_checked() -> None:
    with pytest.raises(UsageError, match="--images"):
        PageOptions(images=-1)
