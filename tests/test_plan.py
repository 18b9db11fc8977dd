from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate, pairwise

from hypothesis import given
from hypothesis import strategies as st

from zippy_batch.config import ArchiveOptions
from zippy_batch.run.plan import BatchLimit, Key, cut_batches, cut_shards, plan_archive
from zippy_batch.sources.directory import Files, Listing, SourceFile

OPTIONS = ArchiveOptions(device="cpu")


def listing(*sizes_bytes: int) -> Listing:
    return Listing(Files(SourceFile(b"%06d.jpg" % i, size, 1_000_000) for i, size in enumerate(sizes_bytes)), 0)


def cut(sizes_bytes: Sequence[int], images: int, size_bytes: int) -> tuple[int, ...]:
    return cut_shards(len(sizes_bytes), [0, *accumulate(sizes_bytes)].__getitem__, images, size_bytes)


def grid(height: int, width: int) -> tuple[int, int]:
    return -(-height // 8), -(-width // 8)


@given(
    st.lists(st.integers(0, 300), max_size=200),
    st.integers(1, 20),
    st.integers(1, 500),
)
def test_shards_cover_all_files_within_their_bounds(sizes: list[int], images: int, size_bytes: int) -> None:
    cuts = cut(sizes, images, size_bytes)
    assert (cuts[0], cuts[-1]) == (0, len(sizes))
    for start, stop in pairwise(cuts):
        assert start < stop or not sizes
        assert stop - start <= images
        assert sum(sizes[start:stop]) <= size_bytes or stop - start == 1


def test_shards_are_balanced() -> None:
    assert cut([900] * 4097, 4096, 1 << 28) == (0, 2048, 4097)
    assert cut([900] * 669, 4096, 1 << 28) == (0, 669)


def test_a_giant_file_is_a_shard_of_its_own() -> None:
    assert cut([10, 10, 5000, 10], 100, 1000) == (0, 2, 3, 4)


def test_plan_settles_the_shard_size_and_counts_rows() -> None:
    plan = plan_archive(listing(*[100] * 25), replace(OPTIONS, shard_size=10), {"latent": "model"})
    assert plan.rows == (8, 8, 9)
    assert [file.path for file in plan.shard(1).files] == [b"%06d.jpg" % i for i in range(8, 16)]
    assert plan.shard(2).source_bytes == 900


def test_fingerprint_depends_on_everything_that_decides_the_bytes() -> None:
    base = plan_archive(listing(1, 2, 3), OPTIONS, {"latent": "model"}).fingerprint
    assert plan_archive(listing(1, 2, 3), OPTIONS, {"latent": "model"}).fingerprint == base
    touched = Listing(Files((SourceFile(b"000000.jpg", 1, 5), *listing(1, 2, 3).files[1:])), 0)
    changes = ({"quality": 74}, {"min_psnr": 30.0}, {"verify": False}, {"batch_size": 32}, {"device": "cuda"})
    others = [
        plan_archive(listing(1, 2, 4), OPTIONS, {"latent": "model"}),
        plan_archive(listing(1, 2), OPTIONS, {"latent": "model"}),
        plan_archive(touched, OPTIONS, {"latent": "model"}),
        plan_archive(listing(1, 2, 3), OPTIONS, {"latent": "other model"}),
        *(plan_archive(listing(1, 2, 3), replace(OPTIONS, **change), {"latent": "model"}) for change in changes),
    ]
    assert len({base, *(plan.fingerprint for plan in others)}) == len(others) + 1


def test_fingerprint_does_not_depend_on_how_the_model_was_named() -> None:
    by_path = replace(OPTIONS, model="/somewhere/faces.safetensors")
    plain, found = (plan_archive(listing(1), options, {"latent": "id"}) for options in (OPTIONS, by_path))
    assert found.fingerprint == plain.fingerprint


Sized = tuple[int, tuple[int, int]]


def key(item: Sized) -> Key:
    return ("latent", *grid(*item[1]))


def samples(item: Sized) -> int:
    return item[1][0] * item[1][1]


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), max_size=120), st.integers(1, 9))
def test_batches_have_one_grid_keep_order_and_lose_nothing(sizes: list[tuple[int, int]], most: int) -> None:
    items = list(enumerate(sizes))
    batches = list(cut_batches(items, key, samples, lambda _: BatchLimit(most, 2000), most_pending=5000))
    assert sorted(item for batch in batches for item in batch) == items
    for batch in batches:
        assert len({grid(*size) for _, size in batch}) == 1
        assert [place for place, _ in batch] == sorted(place for place, _ in batch)
        assert len(batch) <= most
        assert len(batch) == 1 or sum(h * w for _, (h, w) in batch) <= 2000


def test_many_different_sizes_do_not_pile_up() -> None:
    taken = 0

    def items() -> Iterator[int]:
        nonlocal taken
        for side in range(8, 8 * 200, 8):
            taken += side * side
            yield side

    seen = 0
    limit = BatchLimit(64, 1 << 22)
    for batch in cut_batches(
        items(), lambda side: ("latent", side, 0), lambda side: side**2, lambda _: limit, most_pending=1 << 20
    ):
        seen += sum(side * side for side in batch)
        assert taken - seen <= (1 << 20) + (8 * 200) ** 2


def test_strictness_does_not_decide_the_bytes() -> None:
    strict = plan_archive(listing(1), replace(OPTIONS, strict=True), {"latent": "id"})
    assert strict.fingerprint == plan_archive(listing(1), OPTIONS, {"latent": "id"}).fingerprint
