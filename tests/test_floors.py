"""The house's floors: a file imports from floors below its own, and from its room."""

import ast
from pathlib import Path

import plmjax

ROOT = Path(plmjax.__file__).parent
FLOORS = {
    "__init__": 0,
    "tree": 0,
    "config": 0,
    "tokenizers": 1,
    "data": 1.5,  # after tokenizers
    "models": 1,
    "objectives": 2,
    "train": 3,
    "interop": 4,
    "evaluate": 4.5,  # after interop
    "compress": 4.7,  # after evaluate
    "finetune": 4.8,  # after compress
    "display": 5,
    "report": 5,
    "show": 5,
    "transfer": 5,
    "run": 5,
    "job": 5,
    "finetuning": 5,
    "pseudo": 5,
    "start": 5,
    "pretrain": 5,
    "dry_run": 5,
    "dry_run_task": 5,
    "study": 5,
    "webpage": 5,
    "bench": 5,
    "doctor": 5,
    "launch": 5,
    "sweep": 5,
    "cli": 6,
    "__main__": 7,
}
# Who may import what; everybody else sees arrays and functions.
ONLY = {
    "optax": {"train"},
    "orbax": {"train"},
    "tensorstore": {"train"},
    "flax": {"models", "objectives"},
}
WITHOUT_JAX = {"tokenizers", "data"}


def room_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(path: Path):
    """Yields (line, dotted module) of each import, whether at the top or inside."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            for alias in node.names:
                yield node.lineno, f"{node.module}.{alias.name}"


def test_imports_go_down():
    wrong = []
    for path in sorted(ROOT.rglob("*.py")):
        room = room_of(path)
        assert room in FLOORS, f"{path}: which floor does {room} stand on?"
        for line, module in imports(path):
            where = f"{path.relative_to(ROOT)}:{line} imports {module}"
            top, *rest = module.split(".")
            if top == "plmjax" and rest:
                other = rest[0] if rest[0] in FLOORS else "__init__"
                same_room = other == room
                if not same_room and FLOORS[other] > FLOORS[room]:
                    wrong.append(where)
                elif not same_room and FLOORS[other] == FLOORS[room] not in (0, 5):
                    wrong.append(where)
            if room not in ONLY.get(top, {room}):
                wrong.append(where)
            if room in WITHOUT_JAX and top in ("jax", "jaxlib"):
                wrong.append(where)
            if top == "configs":
                wrong.append(where)
    assert not wrong, "\n".join(wrong)
