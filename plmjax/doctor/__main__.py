"""One probe in a separate process: `python -m plmjax.doctor PROBE ARGUMENTS`."""

import dataclasses
import importlib
import json
import os
import sys


def main(probe: str, *arguments: str) -> None:
    """Runs a probe and prints its checks as JSON."""
    # Libraries print to stdout, but the pipe is for the answer alone.
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    checks = importlib.import_module(f"plmjax.doctor.{probe}").checks(*arguments)
    print(json.dumps([dataclasses.asdict(check) for check in checks]), file=answer)


if __name__ == "__main__":
    main(*sys.argv[1:])
