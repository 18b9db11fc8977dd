"""Archives for other libraries: each module is for one of them, and imports it when it is used.

`zippy_batch.torch` is `zippy_batch.adapters.torch`, and so on for each; see docs/use-an-archive.md.
"""
