"""Prints what each step of a check took, and each test of more than 20 seconds."""

import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

work, total = Path(sys.argv[1]), int(sys.argv[2])
print(f"\n== {total} s in all")
if (steps := work / "steps.tsv").exists():
    for line in steps.read_text().splitlines():
        seconds, name = line.split("\t")
        print(f"{seconds:>6} s  {name}")
cases = [
    case
    for path in work.glob("*.xml")
    for case in ElementTree.parse(path).iter("testcase")
]
longest = sorted(((float(c.get("time", 0)), c) for c in cases), key=lambda x: -x[0])
for seconds, case in longest:
    if seconds > 20:
        print(f"{seconds:6.0f} s  {case.get('classname')}.{case.get('name')}")
