"""`python -m zippy_batch` is `zippy-batch`."""

import sys


def main() -> None:
    """The program, which ends without a traceback even when it is interrupted before it has loaded."""
    try:
        from zippy_batch.cli.app import main as run

        run()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
