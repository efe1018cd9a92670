"""One of several processes that train every kind of objective a little; a program.

Process 0 prints {name: [losses, gradient norms]} as one JSON line.
"""

import json
import sys
from pathlib import Path


def main(names: list[str]) -> None:
    from plmjax import processes

    processes.initialise()
    here = Path(__file__).parent
    sys.path[:0] = [str(here), str(here.parent / "objectives")]
    from test_every_objective import train

    found = {}
    for name in names:
        losses, norms, _ = train(name, (8, 1, 1), steps=2)
        found[name] = [losses.tolist(), norms.tolist()]
    if processes.is_first():
        print("FOUND " + json.dumps(found), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
