"""Archives: one Parquet file, or a directory of them with a manifest. `docs/format.md` is the specification.

    rows of a shard --write_part--> part --+--merge_parts-----> NAME.parquet
                                           +--write_manifest--> NAME/part-00000.parquet ..., _manifest.json

    ArchiveReader.open --> info, shards --read_rows--> Row, or Damage in its place

Equal rows and equal info give equal bytes. A shard is one or more whole row groups, so that it is read without touching
another. Readers trust nothing: structure is checked before it is decoded (`part_file.py`), rows by their checksum, and
what is damaged is a value that names its place. One damaged byte is put right from its checksum (`mending.py`).
"""
