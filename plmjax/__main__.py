"""`python -m plmjax` is `plmjax`."""

import sys

from plmjax import Exit


def main() -> int:
    """Runs the command line; a Ctrl-C while it is imported is no traceback either."""
    try:
        from plmjax.cli import main

        return main()
    except KeyboardInterrupt:
        print("\nInterrupted. Run the same command again.", file=sys.stderr)
        return Exit.RESUMABLE


if __name__ == "__main__":
    sys.exit(main())
