"""`python -m zippy_batch` is `zippy-batch`."""

from zippy_batch.cli.app import main

main()
