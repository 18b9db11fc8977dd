"""Conditions on columns: which rows they hold for, and what is no condition."""

from __future__ import annotations

from typing import Any

import pytest

from zippy_batch.archives.where import TYPES, parse_condition
from zippy_batch.errors import UsageError

ROWS: dict[str, list[Any]] = {
    "path": ["a.jpg", "b.jpg", "c.png", "d.txt"],
    "codec": ["latent", "exact", "latent", "raw"],
    "psnr": [28.5, None, 33.0, None],
    "quality": [75, None, 80, None],
    "grey": [False, False, True, False],
    "width": [42, 42, 178, None],
    "height": [42, 60, 42, None],
}


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ("psnr < 30", [0]),
        ("psnr >= 28.5", [0, 2]),
        ("30 < psnr < 40", [2]),
        ("not psnr < 30", [2]),
        ("psnr is None", [1, 3]),
        ("psnr is not None and not grey", [0]),
        ("psnr != 28.5", [2]),
        ("psnr < 30 or codec == 'raw'", [0, 3]),
        ("psnr < 30 or psnr > 0", [0, 2]),
        ("psnr < 30 and width > 1000", []),
        ("psnr > 0 or grey", [0, 2]),
        ("codec in ['exact', 'raw']", [1, 3]),
        ("codec not in ('exact', 'raw')", [0, 2]),
        ("quality in {75}", [0]),
        ("quality not in [75]", [2]),
        ("grey", [2]),
        ("not grey and width == height", [0]),
        ("grey == True", [2]),
        ("width < height", [1]),
        ("width > -1", [0, 1, 2]),
        ('path == "d.txt"', [3]),
        ("  (psnr < 30)\n", [0]),
        ("psnr = 28.5", [0]),
        ("psnr <> 28.5 AND NOT grey", []),
        ("psnr IS NULL", [1, 3]),
        ("psnr Is Not Null and grey = TRUE", [2]),
        ("codec IN ('raw')", [3]),
        ("codec NOT IN ('exact', 'raw') OR codec = 'raw'", [0, 2, 3]),
        ("psnr BETWEEN 28 AND 28.5 OR width BETWEEN -1 AND 0", [0]),
        ("psnr NOT BETWEEN 28 AND 28.5", [2]),
        ("not (psnr between 28 and 28.5) and grey", [2]),
        ("path LIKE '%.txt'", [3]),
        ("path NOT LIKE '_.txt' AND path ILIKE '%.JPG'", [0, 1]),
        ("path = 'it''s' or path = 'd.txt'", [3]),
        ("path like 'D.txt'", []),
    ],
)
def test_rows_that_fulfil_a_condition(condition: str, expected: list[int]) -> None:
    parsed = parse_condition(condition)
    assert parsed.rows(ROWS) == expected
    rows = [dict(zip(ROWS, values, strict=True)) for values in zip(*ROWS.values(), strict=True)]
    assert [place for place, row in enumerate(rows) if parsed.holds(row)] == expected


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("", "not understood"),
        ("psnr = ", "not understood"),
        ("psnr BETWEEN 3", "not understood"),
        ("psnr LIKE 'x'", "'psnr' is a number, and LIKE is of texts"),
        ("path LIKE 3", "neither true nor false"),
        ("path LIKE", "not understood"),
        ("LIKE 'x'", "not understood"),
        ("select * from t", "not understood"),
        ("path = 'a", "not understood"),
        ("psnr", "neither true nor false"),
        ("psnr + 1 < 30", "no column, number or text"),
        ("colour == 'red'", "no column 'colour'; there are path, codec"),
        ("payload == 'x'", "no column 'payload'"),
        ("psnr == None", "no column, number or text"),
        ("psnr is 3", "followed by None"),
        ("psnr < '30'", "is a text, and is compared with a number"),
        ("codec in [1]", "is a number, and is compared with a text"),
        ("codec in 'raw'", "followed by a list"),
        ("codec in [path]", "only numbers and texts"),
        ("1 < 2", "names no column"),
        ("__import__('os').system('true') == 0", "no column, number or text"),
        ("psnr < " + "(" * 500 + "1" + ")" * 500, "not understood"),
    ],
)
def test_what_is_no_condition_is_refused(condition: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_condition(condition)


def test_every_column_that_is_no_bytes_can_be_asked_for() -> None:
    assert {"path", "codec", "psnr", "width", "source_bytes", "mtime_s"} <= TYPES.keys()
    assert not {"payload", "raw", "exif", "crc", "path_bytes"} & TYPES.keys()
