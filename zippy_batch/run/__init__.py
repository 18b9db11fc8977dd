"""What a worker does with one shard: archive it, restore it, check it. Ordinary functions; nothing here knows Ray.

    archive   files -> pictures, JPEG coefficients -> batches -> payloads, verified -> rows -> part
    restore   rows -> batches -> pictures, rebuilt files -> files
    verify    rows -> checksums, and if asked: decode, compare with the originals

Reading and coding run on a few threads (`thread_pool.py`). They change the speed and no byte: batches are cut in path
order before a thread sees them, the networks run on one thread each, and results are put back in order.
"""
