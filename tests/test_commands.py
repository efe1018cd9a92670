"""The commands and Python blocks of each page run, in their order, on small input.

A page has a directory of its own. What its blocks read and none before them wrote is
made when it is first named: files by FILES, trained models by MODELS. Long work is made
short by SMALLER and ADDED alone. tests/test_docs.py parses the commands, all of them.
"""

import contextlib
import io
import json
import os
import re
import shlex
import shutil
import string
import subprocess
import sys
import tarfile
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pytest
from finetune_common import one_device, records
from serve_common import make
from tests_common import environment, once, sentences

from plmjax.children import free_port
from plmjax.cli import main
from plmjax.data import docstrings
from plmjax.experiments import hyper, sweep_plan

ROOT = Path(__file__).parents[1]
# .ci/run runs these, .ci/nightly all others but pages of dated measurements.
FIRST = ("README.md", "docs/tutorial.md")
MEASURED = ("docs/log.md", "docs/performance.md")
PAGES = ("README.md", *sorted(f"docs/{path.name}" for path in ROOT.glob("docs/*.md")))
BLOCK = re.compile(r"^```(sh|bash|python|json)\n(.*?)^```", re.M | re.S)

# {a pattern of what cannot run here: why}.
CANNOT = {
    r"^pip install": "installs packages",
    r"^hf download|dataset=wikimedia": "reads the Hugging Face Hub",
    r"^python run_mlm": "a program of transformers, for comparison",
    r"import AutoModel|torch\.": "imports torch, which tests marked `peer` alone may",
    r"from ray": "Ray is not a dependency",
    r"trackers=wandb": "needs the extra trackers: tests/train/test_trackers.py",
    r"saved_dataset|kind=tfds": "reads a folder that tests/data/test_sources.py makes",
    r"epo_sentences\.txt --config=electra:tiny$": "stops, as it should, without --yes",
    r"--executor=slurm": "submits jobs by sbatch",
    r"^tail -f": "follows the log of a job that Slurm would start",
    r"  ssh ": "logs in to other machines",
    r"--coordinator=10\.0\.0\.1": "one of two machines that wait for each other",
    r"--topology=[vh]": "needs compilers for TPUs and GPUs: tests marked topology",
}

# {a pattern of what a command says: what is run}.
SMALLER = {
    r"(--config\.train\.epochs)=[\d.]+": r"\1=None",
    r" --config\.train\.steps=\d+": "",
    r"\bsteps=\d+": "steps=2",
    r'(plmjax\.pretrain\("my\.txt"), workdir': r"\1, steps=2, workdir",
    r"(finetune\(.*keys=\{)": r'\1"train.steps": 2, "baselines": False, ',
    r"(start\.|prune --)layers=2": r"\1layers=1",
    r"length=4096,task\.buckets=\(1024,2048\)": "length=512,task.buckets=(128,256)",
    r"layers_fraction=0.25": "layers_fraction=0.5",
    r"(sweep --config=\S*learning_rate\S*)": r"\1 --config.model.width=64 "
    "--config.model.heads=4 --config.model.ffn_width=64",
    r"(compare --pretrain=\S+)": r"\1 --pretrain.train.steps=2 --pretrain.train.batch=4"
    " --pretrain.model.layers=2 --pretrain.model.width=64 --pretrain.model.heads=4"
    " --pretrain.model.ffn_width=64",
    r"(distill/docstrings\S*)": r"\1 --config.objective.layers='(0,1)'",
    r" --minutes=60": "",  # a budget depends on the machine
    r"--config\.train\.schedule\.warmup_percent=\d+": "",
    r"--seeds=\d+": "--seeds=2",
    r"--rounds=\d+": "--rounds=1",
    r"--cases=\d+": "--cases=9",
    r"DIRECTORY --megabytes=\d+": "saves --megabytes=4",
    r"--size=\d+": "--size=300",
    r"--sizes=[\d,]+": "--sizes=200,300",
    r"(launch --target=(?!local)\S+)": r"\1 --dry_run",
    # The page is followed in a directory that is no checkout.
    r"(launch --target=sky)": r"\1 --install='pip install plmjax'",
    # Child processes would read the docstrings of all packages.
    r"(target=local .*-- pretrain|DEVICES=8 plmjax pretrain)": r"\1 a.txt",
    r"bert-base --devices=8,64,512 --batch=4096": "bert-mini --devices=8 --batch=16",
    r"(benchmarks/attention\.py)": r"\1 --lengths=64,128 --rounds=1",
    r"(inference --preset=scibert)": r"\1 --batch=1 --length=16",
}
MODEL = ("layers=2", "width=64", "heads=4", "ffn_width=64")
ROWS = 120  # of a labelled file
TRAIN = " --config.train.batch=4 --config.train.steps=2"
# {verb: the options that its commands get, too}.
ADDED = {
    "pretrain": "".join(f" --config.model.{key}" for key in MODEL)
    + " --config.data.phases='()' --config.train.batch=8 --steps=2 --yes"
    " --config.train.accumulation=1 --config.train.schedule.warmup_steps=0"
    " --config.data.held_out_percent=20",  # of little text
    **dict.fromkeys(
        ("finetune", "compare", "pseudo"), f"{TRAIN} --config.baselines=False"
    ),
    "sweep": TRAIN,
    "bench inference": " --seconds=0.05",
}

# What a command writes is named by these options, and by --workdir but of READERS.
WRITES = ("--to", "--output", "--plot")
READERS = ("evaluate", "export", "doctor", "bench", "report")
# {path of a server's answers: which of serve_common's models gives them}.
SERVED = {
    "/fill": "fill",
    "/detect": "detect",
    "/classify": "classes",
    "/tag": "tags",
    "/answer": "answers",
    "/embed": "embeddings",
}


def tagged(line: str) -> str:
    """Sentences of a word and its tag a line."""
    return "\n".join(
        "".join(
            line.format(number, *pair)
            for number, pair in enumerate(zip(r["tokens"], r["tags"], strict=True), 1)
        )
        for r in records("tags", ROWS)
    )


def lines(kind: str, **names: str) -> str:
    """Labelled examples as jsonl, some of their fields by other names."""
    return "".join(
        json.dumps({names.get(key, key): value for key, value in record.items()}) + "\n"
        for record in records(kind, ROWS)
    )


def table(row: str, header: str = "") -> str:
    return header + "".join(row.format(**r) for r in records("classes", ROWS))


def squad() -> str:
    questions = [
        {"context": r["context"], "qas": [r | {"id": str(number)}]}
        for number, r in enumerate(records("answers", ROWS))
    ]
    return json.dumps({"data": [{"paragraphs": questions}]})


def prose() -> str:
    """Text that no made-up sentence looks like: a page of ours."""
    return (ROOT / "docs" / "data.md").read_text()[:8000]


# {a pattern of names of files: their text}. The first pattern that fits is used.
FILES = {
    r"dumps/.*": lambda: lines("classes", text="body"),
    r"(epo_)?sentences\.txt": lambda: "".join(
        f"{n}\t{line}\n" for n, line in enumerate(sentences(400))
    ),
    r"genome\.txt": lambda: "\n\n".join(
        "".join("acgt"[len(word) % 4] for word in line.split() * 9)
        for line in sentences(60)
    ),
    r"(.*[-/])?vocab\.txt": lambda: "\n".join(
        ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        + [mark + letter for mark in ("", "##") for letter in string.ascii_lowercase]
    ),
    r"zh/.*": lambda: "\n".join(
        "".join(chr(0x4E00 + ord(word[0]) + len(word)) for word in line.split())
        for line in sentences(400)
    ),
    r"GLUE/.*\.tsv": lambda: "".join(
        f"a\t{len(r['text']) % 2}\t\t{r['text']}\n" for r in records("classes", ROWS)
    ),
    r".*\.conllu": lambda: tagged("{}\t{}\t_\t{}\t_\t_\t_\t_\t_\t_\n"),
    r".*\.conll|genia/.*\.tsv": lambda: tagged("{1}\t{2}\n"),
    r"sweep\.txt": lambda: "plmjax pretrain a.txt --workdir=runs/a\n",
    r"my_config\.py": (ROOT / "configs" / "pretrain" / "docstrings.py").read_text,
    r"sci_csabstruct/.*": lambda: json.dumps(
        {"sentences": sentences(24), "labels": ["aim", "result"] * 12}
    ),
    r"pairs\.jsonl": lambda: lines("embeddings"),
    r".*\.jsonl(\.\w+)?": lambda: lines("classes"),
    r".*\.csv": lambda: table('"{text}",{label}\n', "text,label\n"),
    r".*\.json": squad,
    r"meditations\.txt": lambda: "\n".join(  # a document a line
        " ".join(map(str.capitalize, sentences(4, seed))) for seed in range(100)
    ),
    r"(texts|new|many)\.txt": lambda: re.sub(r"\n+", "\n", prose()),
    r".*\.(txt|py|tar)(\.gz)?": prose,
}
# {a pattern of names of trained models: their kind}.
MODELS = {
    r"runs/electra\S*": "electra",
    r"runs/(labels|sentiment|roles|topics|reviews|genia)": "labels",
    r"runs/meditations": "nsp",
    r"runs/sentences": "sentences",
    r"served": "served",
    r"stores/a": "first",
    r"stores/b": "second",
    r"runs/\S+": "run",
    r"(path/to/)?bert-base(-uncased)?|published|english|my-bert|books-bert": "hub",
}
TRAINED = (
    "plmjax pretrain a.txt --config=bert_mini --workdir=run",
    "plmjax pretrain a.txt --config=electra:tiny --workdir=electra",
    "plmjax finetune --config=classes:small --config.model=run "
    "--config.task.train=train.csv --config.task.test=test.csv --workdir=labels",
    "plmjax pretrain meditations.txt --config=nsp --workdir=nsp",
    "plmjax finetune --config=embeddings --config.model=run "
    "--config.task.train=pairs.jsonl --workdir=sentences",
    "plmjax compress --model=labels --format=onnx --to=served",
    "plmjax export --workdir=run --to=hub",
    "plmjax data prepare a.txt --config.tokenizer.path=run/tokenizer --to=first",
    "plmjax data prepare my.txt --config.tokenizer.path=run/tokenizer --to=second",
)


def write(path: Path, text: str) -> None:
    """Writes a text, packed as the suffix says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = text.encode()
    if path.name.endswith(".tar.gz"):
        with tarfile.open(path, "w:gz") as archive:
            member = tarfile.TarInfo("a.txt")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    elif packing := {".gz": "gzip", ".zst": "zstd"}.get(path.suffix):
        path.write_bytes(pyarrow.Codec(packing).compress(content, asbytes=True))
    else:
        path.write_bytes(content)


def commands(block: str) -> list[str]:
    """The commands of a ```sh block, one a line; a backslash continues a line."""
    return [line for line in block.replace("\\\n", " ").splitlines() if line.strip()]


def smaller(command: str) -> str:
    """The command as it is run: by SMALLER, and with the keys of ADDED."""
    for pattern, small in SMALLER.items():
        command = re.sub(pattern, small, command)
    verb = re.search(rf"(?:plmjax|--) ({'|'.join(ADDED)})\b", command)
    return command + ADDED[verb[1]] if verb else command


def form(value):
    """The keys and types of JSON, without its values."""
    if isinstance(value, dict):
        return {key: form(item) for key, item in value.items()}
    if isinstance(value, list):
        return [form(item) for item in value[:1]]
    return float if isinstance(value, int | float) else type(value)


class Reader:
    """One who types what a page says, in the current directory."""

    def __init__(self, models: Callable[[], Path], capfd):
        self.models, self.capfd = models, capfd
        self.old: set[str] = set()  # what was there before this block
        self.names: dict = {"__name__": "__page__"}  # of the Python blocks
        self.server: Server | None = None
        self.answer = None

    def follow(self, language: str, block: str) -> None:
        if language == "json":  # what the server has just answered
            assert form(json.loads(block)) == form(self.answer), self.answer
        else:
            run = self.python if language == "python" else self.run
            for item in commands(block) if language == "sh" else [block]:
                if not any(re.search(pattern, item) for pattern in CANNOT):
                    run(item)
        self.old = {path.as_posix() for path in Path().rglob("*")}

    def run(self, command: str) -> None:
        small = smaller(command)
        lexer = shlex.shlex(small, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words = list(lexer)
        self.prepare(words)
        if words[:2] == ["plmjax", "serve"]:
            self.close()
            self.server = Server(words)
            return
        if words[0] == "curl":
            return self.ask(words)
        plain = not any(set(word) <= set("|&;<>") for word in words)
        if words[0] == "plmjax" and plain:
            with contextlib.nullcontext() if "mesh." in small else one_device():
                code = main(words[1:])
        else:
            path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
            bash = ["bash", "-euo", "pipefail", "-c", small]
            code = subprocess.run(bash, env=environment(PATH=path)).returncode
        printed = "".join(self.capfd.readouterr()).rstrip().splitlines()
        last = "\n".join(printed[-25:])
        assert code == 0, f"{command}\nwas run as\n{small}\nexit code {code}:\n{last}"

    def python(self, block: str) -> None:
        for pattern, small in SMALLER.items():
            block = re.sub(pattern, small, block)
        written = set(re.findall(r'workdir="(.+?)"', block))
        for name in written & self.old:
            shutil.rmtree(name)
        for name in {*re.findall(r'"([^"\s]+)"', block)} - written:
            for part in ("train", "dev", "test"):
                self.provide(name.replace("{part}", part))
        with one_device():
            exec(compile(block, "block", "exec"), self.names)
        if "get_config" in block:  # a recipe, beside ours
            file = Path("configs/mine/recipe.py")
            write(file, block)
            if "def get_hyper" in block or "def get_settings" in block:
                sweep_plan.load(str(file), [])
            else:
                assert main(["config", "validate", str(file)]) == 0

    def prepare(self, words: list[str]) -> None:
        """Makes what a command reads; removes what it will write and is of old."""
        reads = " ".join(words[1:]).startswith(READERS) or "--collect" in words
        for word in words[1:]:
            option, _, value = word.rpartition("=")
            for name in re.split("[,:]", value):  # NAME:ARGUMENT is a recipe's
                if option in WRITES or (option == "--workdir" and not reads):
                    if name in self.old:
                        remove = shutil.rmtree if Path(name).is_dir() else os.remove
                        remove(name)
                else:
                    self.provide(name.strip())

    def provide(self, name: str) -> None:
        """Makes the file, folder or model of a name, if it is not there."""
        name = name.removesuffix("/tokenizer")  # of a run
        path = Path(name.replace("**/", "").replace("*", "a"))
        if name.startswith("/") or "://" in name or path.exists():
            return
        for pattern, kind in MODELS.items():
            if re.fullmatch(pattern, name):
                shutil.copytree(self.models() / kind, path)
                self.old.add(name)
                for text in ("a.txt", "train.csv", "test.csv", "pairs.jsonl"):
                    self.provide(text)
                return
        path = path / "a.txt" if name.endswith("/") else path
        for pattern, text in FILES.items():
            if re.fullmatch(pattern, path.as_posix()):
                return write(path, text())

    def ask(self, words: list[str]) -> None:
        """Sends the body of a `curl` to the server of the URL's path."""
        path = re.sub(".*:8000", "", next(w for w in words if w.startswith("http")))
        if self.server is None or self.server.path != path:
            self.close()
            _, folder = make(SERVED[path], Path("served", SERVED[path]))
            self.server = Server(["plmjax", "serve", f"--model={folder}"])
        self.answer = self.server.ask(words[words.index("-d") + 1])

    def close(self) -> None:
        if self.server is not None:
            self.server.process.kill()
            self.server.process.communicate()


class Server:
    """`plmjax serve` as a child process, on a port of its own."""

    def __init__(self, words: list[str]):
        self.process = subprocess.Popen(
            [sys.executable, "-m", *words, f"--port={free_port()}"],
            stdout=subprocess.PIPE,
            text=True,
            env=environment(),
        )
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().split()[-1]
        self.path = re.sub(r".*:\d+", "", self.url)

    def ask(self, body: str):
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(self.url, body.encode(), timeout=60) as answer:
            return json.load(answer)


def marks(page: str) -> list:
    return [pytest.mark.slow if page in FIRST else pytest.mark.campaign]


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "page", [pytest.param(p, marks=marks(p)) for p in PAGES if p not in MEASURED]
)
def test_what_a_page_says_runs(page, request, tmp_path, monkeypatch, capfd):
    written = (ROOT / page).read_text()
    if "s3://bucket" in written:
        request.getfixturevalue("s3")
    # Other packages' docstrings take a minute to collect.
    monkeypatch.setattr(docstrings, "SOURCE_BYTES", 0)
    few = [p for p in docstrings.installed_packages() if p.name == "optax"]
    monkeypatch.setattr(docstrings, "installed_packages", lambda: few)
    seeds = hyper.seeds
    monkeypatch.setattr(hyper, "seeds", lambda _, **more: seeds(1, **more))

    def train(folder: Path) -> None:
        with contextlib.chdir(folder):
            for command in TRAINED:
                reader.run(command)

    factory = request.getfixturevalue("tmp_path_factory")
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "1")  # of child processes
    monkeypatch.chdir(tmp_path)
    for name in ("benchmarks", "tests"):
        Path(name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "configs", "configs")
    reader = Reader(lambda: once(factory, "models", train), capfd)
    try:
        for language, block in BLOCK.findall(written):
            reader.follow(language, block)
    finally:
        reader.close()


def test_what_cannot_run_still_stands_on_a_page():
    pages = [(ROOT / p).read_text() for p in PAGES if p not in MEASURED]
    blocks = [block for page in pages for _, block in BLOCK.findall(page)]
    written = [command for block in blocks for command in [block, *commands(block)]]
    for pattern in CANNOT:
        assert any(re.search(pattern, command) for command in written), pattern
