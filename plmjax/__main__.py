"""`python -m plmjax` is `plmjax`."""

import sys

from plmjax.cli import main

if __name__ == "__main__":
    sys.exit(main())
