"""`plmjax tokenizer train`, `compare` and `choose`, as people call them."""

import json
import re

import pytest
from tests_common import sentences

from plmjax import Exit, cli
from plmjax import config as config_lib
from plmjax.data.corpus import SourceConfig, make_source
from plmjax.experiments import sweep
from plmjax.experiments.trials import listed_trials
from plmjax.experiments.vocabulary_choice import draw_sample, suggest
from plmjax.pretrain import build
from plmjax.pretrain.run import DEFAULT_CONFIG, pretrain
from plmjax.tokenizers import Tokenizer
from plmjax.workdir import RunConfig, Workdir

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WHOLE = "plasmid"


@pytest.fixture
def call(capsys, tmp_path, monkeypatch):
    """call(*arguments) -> (exit code, stdout, stderr), in a folder with text.txt."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("\n".join(sentences(300)) + "\n")

    def run(*arguments: str) -> tuple[int, str, str]:
        code = cli.main(["tokenizer", *arguments])
        return code, *capsys.readouterr()

    return run


def test_train_gives_the_vocabulary_of_pretraining(call, tmp_path):
    keys = ["kind=bpe", "vocab_size=300", "lowercase=false", "special_tokens=('[A]',)"]
    code, out, err = call(
        *("train", "text.txt", "--kind=bpe", "--size=300", "--lowercase=false"),
        *("--special_tokens=[A]", "--to=mine"),
    )
    assert code == Exit.OK, err
    assert "bpe, 300 pieces: mine" in out and "Pieces: " in out
    assert "300 documents" in err
    overrides = ["data.source.paths=text.txt", *(f"tokenizer.{key}" for key in keys)]
    config = config_lib.load(RunConfig, None, overrides, DEFAULT_CONFIG)
    workdir = Workdir(tmp_path / "run")
    workdir.create()
    theirs, _ = build.prepare_data(config, workdir, len, lambda tokenizer: None)
    assert Tokenizer.load("mine").digest == theirs.digest
    code, _, err = call("train", "text.txt", "--to=mine")
    assert code == Exit.USAGE and "exists and is not empty" in err


def test_train_reads_a_mixture(call, tmp_path):
    (tmp_path / "more.txt").write_text("zebras zigzag\n" * 50)
    names = [f"{{'name':'{n}','paths':'{n}.txt'}}" for n in ("text", "more")]
    mixture = [f"--config.data.mixture=({','.join(names)})"]
    mixture.append("--config.data.mixture_temperature=2")
    code, out, err = call("train", *mixture, "--size=200", "--to=mixed")
    assert code == Exit.OK, err
    assert "zebras" in Tokenizer.load("mixed").vocab and "300 documents" not in err
    write_vocabulary(tmp_path / "v.txt")
    code, out, err = call("compare", "v.txt", "--text=more.txt", *mixture, "--json")
    assert code == Exit.OK and json.loads(out)["vocabularies"][0]["documents"] == 50


def write_vocabulary(path, *pieces):
    letters = [*"abcdefghijklmnopqrstuvwxyz."]
    letters += [f"##{letter}" for letter in letters]
    path.write_text("\n".join([*SPECIAL, *pieces, *letters]) + "\n")


def test_compare(call, tmp_path):
    write_vocabulary(tmp_path / "general.txt", "pl", "##as", "##mid")
    write_vocabulary(tmp_path / "science.txt", WHOLE)
    (tmp_path / "test.txt").write_text(f"a {WHOLE} a {WHOLE}.\n\nno more\n" * 20)
    given = ("compare", "general.txt", "science.txt", "--text=test.txt")
    given += ("--words=xy,x[/b]y",)
    code, out, err = call(*given, "--json", "--to=figures")
    assert code == Exit.OK, err
    result = json.loads(out)
    first, second = result["vocabularies"]
    assert (first["name"], second["name"]) == ("general.txt", "science.txt")
    assert first["tokens"] == second["tokens"] + 20 * 4
    assert second["length"] == second["tokens"] / first["tokens"] < 1
    assert second["rows"] <= first["rows"] and second["flops"] < first["flops"] * 1.01
    shown = {line["word"]: line["pieces"] for line in result["words"]}
    assert shown["xy"] == [["x", "##y"]] * 2
    assert shown[WHOLE] == [["pl", "##as", "##mid"], [WHOLE]]
    files = {path.name for path in (tmp_path / "figures").iterdir()}
    assert files == {"compare.json", "compare.png"}
    code, out, _ = call(*given)
    assert code == Exit.OK and "words kept whole" in out and "3: pl ##as" in out
    assert "x[/b]y (0)" in out  # no markup


def test_choose(call, tmp_path):
    code, out, err = call(
        *("choose", "text.txt", "--sizes=20,60,400", "--kinds=wordpiece,bpe", "--json"),
        *("--to=sizes", "--config.data.held_out_percent=20"),
        "--config.data.source.document=line",
    )
    assert code == Exit.OK, err
    assert "wordpiece-20: The text has" in err and "bpe-60: " in err
    result = json.loads(out)
    names = [record["name"] for record in result["vocabularies"]]
    assert names == ["wordpiece-60", "wordpiece-400", "bpe-400"]
    assert result["suggestion"] in names and "FLOPs" in result["reason"]
    files = {path.name for path in (tmp_path / "sizes").iterdir()}
    assert files == {*names, "choose.json", "choose.png"}
    assert Tokenizer.load(tmp_path / "sizes" / "bpe-400").kind == "bpe"


def record(name, pieces, flops, length=0.25, unknown=0.0, **more):
    figures = {"name": name, "kind": "bpe", "vocab_size": pieces, "flops": flops}
    figures |= {"tokens_per_byte": length, "unknown_share": unknown, "bytes": 100}
    return figures | more


def test_a_sample_holds_out_as_much_as_the_text():
    config = config_lib.load(RunConfig, None, ["data.held_out_percent=10"])
    texts = [f"text {n:04d}" for n in range(4000)]
    source = make_source(SourceConfig(), lambda _: iter(texts), "x", {})
    sample = draw_sample(config, source, lambda _: None, 4000)
    total = len(sample.train) + len(sample.held_out)
    assert total > 200 and 0.05 < len(sample.held_out) / total < 0.15


def test_the_smallest_near_the_best_is_suggested():
    records = [
        record("a", 1000, 1.30, 0.4),
        record("b", 2000, 1.01, 0.3),
        record("c", 4000, 1.00, 0.27),
        record("d", 500, 0.5, unknown=0.01),
    ]
    name, why = suggest(records, "bert-base")
    assert name == "b"
    assert "within 2% of c" in why and "4,000 pieces make the text 10.0% shorter" in why
    assert "1,000 pieces make the text 33.3% longer" in why and "unknown: d" in why
    probed = [
        r | {"bits_per_byte": bits}
        for r, bits in zip(records, [2, 3, 2.5, 1], strict=True)
    ]
    assert suggest(probed, "bert-base")[0] == "a"
    assert "largest" not in why and "try larger" in suggest(records[:2], "bert-base")[1]


def in_this_process(plan, root, options, log) -> int:
    """In place of sweep.sweep, whose trials are processes."""
    del options, log
    for trial in listed_trials(root, plan):
        trial.save()
        pretrain(config_lib.build(RunConfig, trial.config), trial.directory)
    return Exit.OK


@pytest.mark.slow
def test_a_probe_compares_on_the_same_hidden_words(call, monkeypatch):
    monkeypatch.setattr(sweep, "sweep", in_this_process)
    code, out, err = call(
        *("choose", "text.txt", "--sizes=60,400", "--json", "--to=sizes"),
        *("--probe=0.002", "--config.data.held_out_percent=20"),
        *("--config.data.source.document=line", "--config.model.width=16"),
        *("--config.model.heads=2", "--config.model.ffn_width=16"),
        *("--config.model.layers=1",),
        *("--config.data.phases=((900,32,8),)", "--config.data.batch_ramp=(9000,2)"),
        *("--config.train.steps=none", "--config.train.schedule.warmup_steps=100"),
    )
    assert code == Exit.OK, err
    small, large = json.loads(out)["vocabularies"]
    for one in (small, large):
        tokens = one["probe_steps"] * 8 * 32
        assert 0 <= tokens - 2000 * one["tokens_per_byte"] < 8 * 32
        assert 1 < one["bits_per_byte"] < 9
    assert small["probe_steps"] > large["probe_steps"]
    assert "bits a byte" in json.loads(out)["reason"]


def test_a_probe_that_fails_leaves_nothing(call, tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "sweep", lambda *_: Exit.NUMERIC)
    given = ("choose", "text.txt", "--sizes=60,60", "--probe=0.002")
    given += ("--config.data.held_out_percent=20", "--config.data.source.document=line")
    code, _, err = call(*given, "--to=new/sizes")
    assert code == Exit.NUMERIC and "not trained all of its models" in err
    assert err.count("wordpiece-60: 60 pieces") == 1
    assert not (tmp_path / "new").exists()


def test_what_cannot_be_read_is_named(call, tmp_path):
    write_vocabulary(tmp_path / "good.txt")
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe")
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "prose.txt").write_text("no vocabulary\n")
    (tmp_path / "folder").mkdir()
    text = "--text=text.txt"
    for given, code, said in (
        (("train", "text.txt", "--kind=kmr", "--to=x"), 2, "Did you mean kmer"),
        (("train", "absent", "--kind=bpe", "--size=9", "--to=x"), 2, "alone are 261"),
        (("train", "", "--to=x"), 2, "has an empty path"),
        (("compare", "good.txt", "--text="), 2, "--text is empty"),
        (("adapt", "--model=", "--text=a", "--to=x"), 2, "--model is empty"),
        (("train", "text.txt", "--siz=9", "--to=x"), 2, "Did you mean --size=9"),
        (("train", "text.txt", "--size=9", "--to=x"), 3, "vocab_size=9 can hold"),
        (("train", "empty.txt", "--to=x"), 3, "empty"),
        (("train", "text.txt", "--config.tokenizer.path=y", "--to=x"), 2, "none to"),
        (("compare", "good.txt", "./good.txt", text), 2, "is given twice"),
        (("compare", "good.txt", "nowhere", text), 2, "no vocabulary 'nowhere'"),
        (("compare", "good.txt", "bytes.json", text), 4, "bytes.json"),
        (("compare", "good.txt", "prose.txt", text), 4, "prose.txt lacks"),
        (("compare", "good.txt", "folder", text), 4, "folder holds none of"),
        (("compare", "good.txt", "--text=absent"), 2, "'absent' matches no file"),
        (("choose", "text.txt", "--kinds=bpee", "--to=x"), 2, "Did you mean bpe?"),
        (("choose", "text.txt", "--sizes=a", "--to=x"), 2, "--sizes=a must be"),
    ):
        found, _, err = call(*given)
        assert (found, bool(re.search(said, err))) == (code, True), (given, err)
        assert not (tmp_path / "x").exists()
