"""The house's floors: a file imports from floors below its own, and from its room."""

import ast
import functools
import graphlib
import re
from pathlib import Path

import plmjax

ROOT = Path(plmjax.__file__).parent
BENCHMARKS = {path.stem for path in (ROOT.parent / "benchmarks").glob("*.py")}
# From the ground up; rooms of one floor do not import each other.
FLOORS = (
    ("__init__",),
    ("children", "config", "console", "files", "machine", "processes", "stop", "tree"),
    ("launch", "metrics", "models", "tokenizers"),
    ("checkpoint", "data"),
    ("tasks",),
    ("objectives",),
    ("interop", "train"),
    ("workdir",),
    ("evaluate",),
    ("onnx",),
    ("baselines", "embed", "report", "serve"),
    ("finetune", "pretrain"),
    ("bench", "compress", "doctor", "experiments"),
    ("cli",),
    ("__main__", "api"),
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
# Who may import what; everybody else sees arrays and functions.
ONLY = {
    "optax": {"train"},
    "orbax": {"checkpoint", "processes"},
    "tensorstore": {"checkpoint"},
    "flax": {"models", "objectives"},
    "plotly": {"report"},
    "matplotlib": {"report"},
    "onnx": {"onnx", "compress", "bench"},
    "onnxruntime": {"onnx", "compress", "bench"},
}
WITHOUT_JAX = {"tokenizers", "data", "serve"}
# What runs an exported folder is there without these, with all that it imports.
SERVED = ("onnx/session.py", "serve/*.py")
HEAVY = {"jax", "jaxlib", "flax", "torch", "onnx", "datasets", "safetensors"}


@functools.cache
def nodes_of(path: Path) -> tuple[ast.AST, ...]:
    """Returns all nodes of a file."""
    return tuple(ast.walk(ast.parse(path.read_text())))


def room_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(path: Path):
    """Yields (line, dotted module) of each import, whether at the top or inside.

    But not what plmjax/__init__.py imports for type checkers alone: the functions of
    api.py, which it imports late.
    """
    nodes = nodes_of(path)
    if path == ROOT / "__init__.py":
        checked = [n for n in nodes if ast.unparse(n).startswith("if TYPE_CHECKING")]
        hidden = {inner for node in checked for inner in ast.walk(node)}
        nodes = [node for node in nodes if node not in hidden]
    for node in nodes:
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
        assert room in FLOOR, f"{path}: which floor does {room} stand on?"
        for line, module in imports(path):
            where = f"{path.relative_to(ROOT)}:{line} imports {module}"
            top, *rest = module.split(".")
            if top == "plmjax":
                other = rest[0] if rest and rest[0] in FLOOR else "__init__"
                if other != room and FLOOR[other] >= FLOOR[room]:
                    wrong.append(where)
            if room not in ONLY.get(top, {room}):
                wrong.append(where)
            if room in WITHOUT_JAX and top in ("jax", "jaxlib"):
                wrong.append(where)
            if top in {"configs", "benchmarks"} | BENCHMARKS:
                wrong.append(where)
    assert not wrong, "\n".join(wrong)


def test_no_files_import_each_other_in_a_circle():
    names = {
        ".".join(("plmjax", *path.relative_to(ROOT).with_suffix("").parts)): path
        for path in ROOT.rglob("*.py")
    }
    names = {name.removesuffix(".__init__"): path for name, path in names.items()}
    graph = {}
    for name, path in names.items():
        found = {module for _, module in imports(path)}
        found |= {module.rpartition(".")[0] for module in found - names.keys()}
        # A room's __init__ names what its files hold.
        graph[name] = (found & names.keys()) - {name, name.rpartition(".")[0]}
    # Raises CycleError, which names the files.
    graphlib.TopologicalSorter(graph).prepare()


def test_what_is_served_needs_neither_jax_nor_onnx():
    waiting = [path for pattern in SERVED for path in ROOT.glob(pattern)]
    seen = {*waiting}
    assert len(waiting) > 3
    while waiting:
        path = waiting.pop()
        for node in ast.parse(path.read_text()).body:  # what is inside comes later
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                modules = [f"{node.module}.{alias.name}" for alias in node.names]
            else:
                continue
            for top, *parts in (module.split(".") for module in modules):
                assert top not in HEAVY, f"{path}:{node.lineno} imports {top}"
                inner = range(len(parts) + 1) if top == "plmjax" else ()
                folders = [ROOT.joinpath(*parts[:n]) for n in inner]
                files = [x.with_suffix(".py") for x in folders[1:]]
                files += [x / "__init__.py" for x in folders]
                new = {x for x in files if x.is_file()} - seen
                seen |= new
                waiting += new
    assert ROOT / "tokenizers/tokenizer.py" in seen


def test_functions_fit_on_a_screen_and_calls_name_what_they_pass():
    wrong = []
    for path in sorted(ROOT.rglob("*.py")):
        for node in nodes_of(path):
            where = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno is not None
                if (lines := node.end_lineno - node.lineno + 1) > 80:
                    wrong.append(f"{where}: {node.name} has {lines} lines")
            if isinstance(node, ast.Call):
                given = [a for a in node.args if not isinstance(a, ast.Starred)]
                if len(given) > 5:
                    name = ast.unparse(node.func)
                    wrong.append(f"{where}: {name} gets {len(given)} by place")
    assert not wrong, "\n".join(wrong)


IMPORT = re.compile(r"^\s*from (plmjax[\w.]*) import \(?([\w, ]+)", re.M)


def names_of(module: str) -> set[str]:
    """What a module of the package has: definitions, imports, and files of a room."""
    path = ROOT.joinpath(*module.split(".")[1:])
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    assert file.is_file(), f"there is no {module}"
    found = {p.stem for p in path.glob("*")}
    for node in nodes_of(file):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.ImportFrom | ast.Import):
            found |= {alias.asname or alias.name for alias in node.names}
    return found


def test_programs_in_texts_import_what_is_there():
    """Children that tests write, and what docs/ shows: no linter reads them."""
    texts = {path: path.read_text() for path in (ROOT.parent / "docs").glob("*.md")}
    for path in (ROOT.parent / "tests").rglob("*.py"):
        found = (n.value for n in nodes_of(path) if isinstance(n, ast.Constant))
        texts[path] = "\n".join(text for text in found if isinstance(text, str))
    seen = 0
    for path, text in texts.items():
        for module, names in IMPORT.findall(text):
            wanted = {name.split(" as ")[0].strip() for name in names.split(",")}
            seen += 1
            missing = wanted - names_of(module) - {""}
            assert not missing, f"{path}: {module} has no {missing}"
    assert seen > 20
