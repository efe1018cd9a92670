"""`plmjax doctor`."""

from plmjax.cli.options import at_least_one, json_option


def add(verb) -> None:
    added = verb(
        "doctor",
        _doctor,
        "say what is wrong with a machine: versions, devices, processes, disk, clock",
        "plmjax doctor --workdir=runs/mine --num_processes=4",
    )
    added.add_argument(
        "--workdir", default=".", help="where a run would live (default: here)"
    )
    added.add_argument(
        "--num_processes",
        type=int,
        default=2,
        help="processes that try to meet on this machine (2; 1 leaves it out)",
    )
    json_option(added)


def _doctor(args) -> int:
    import json

    from plmjax.doctor.report import as_dict, as_text, examine, exit_code

    at_least_one(args, "num_processes")
    found = examine(args.workdir, args.num_processes)
    print(json.dumps(as_dict(found)) if args.json else as_text(found))
    return exit_code(found)
