"""Archive directories of face images into Parquet with a learned codec, and restore them with known quality."""

__version__ = "0.1.0"
