"""`plmjax doctor`."""

from plmjax.cli.options import at_least_one, json_option, print_result


def add(verb) -> None:
    """Adds the parser of `plmjax doctor`."""
    added = verb(
        "doctor",
        _doctor,
        "check this machine: versions, devices, processes, disk and clock",
        "plmjax doctor --workdir=runs/mine --num_processes=4",
    )
    added.add_argument(
        "--workdir", default=".", help="directory of a future run (default: .)"
    )
    added.add_argument(
        "--num_processes",
        type=int,
        default=2,
        help="number of processes that connect as a test (default: 2; 1: no test)",
    )
    json_option(added)


def _doctor(args) -> int:
    from plmjax.doctor.report import as_dict, as_text, examine, exit_code

    at_least_one(args, "num_processes")
    checks = examine(args.workdir, args.num_processes)
    print_result(args, as_dict(checks), lambda _: as_text(checks))
    return exit_code(checks)
