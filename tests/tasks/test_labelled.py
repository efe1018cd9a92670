import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest

from plmjax import PlmjaxError
from plmjax.data.columns import ColumnsConfig
from plmjax.data.examples import hold_out
from plmjax.tasks.config import TaskConfig
from plmjax.tasks.labelled import load_labelled, read_examples

CSV = 'text,label\n"fine, and\nlong",pos\nbad,neg\n'


@pytest.fixture
def write(tmp_path):
    """Returns write(name, content) -> path."""

    def write_(name, content):
        path = tmp_path / name
        raw = content if isinstance(content, bytes) else content.encode()
        path.write_bytes(raw)
        return str(path)

    return write_


def read(path, columns=None, **config):
    columns = ColumnsConfig(**columns or {})
    config = TaskConfig(train=path, columns=columns, **config)
    return read_examples(config, "train")


def seen(examples):
    return [(example.texts, example.label) for example in examples]


def fails(*words, code=3, columns=None, **config):
    with pytest.raises(PlmjaxError) as info:
        load_labelled(TaskConfig(columns=ColumnsConfig(**columns or {}), **config))
    assert info.value.code == code, str(info.value)
    assert info.value.hint and "\n" not in str(info.value)
    for word in words:
        assert word in str(info.value), str(info.value)


def lines(*records):
    return "".join(json.dumps(record) + "\n" for record in records)


# --- formats


ROWS = [(("fine",), "pos"), (("bad",), "neg")]


@pytest.mark.parametrize(
    "name, content, config",
    [
        ("a.csv", "text,label\r\nfine,pos\r\n\r\nbad,neg", {}),
        ("a.csv", "\ufefftext,label\nfine,pos\nbad,neg\n", {}),
        # Without the hour, which would be another in each of pytest's processes.
        ("a.csv.gz", gzip.compress(b"text,label\nfine,pos\nbad,neg\n", mtime=0), {}),
        ("a.tsv", "text\tlabel\nfine\tpos\nbad\tneg\n", {}),
        ("a.tab", "x\tlabel\ttext\n1\tpos\tfine\n2\tneg\tbad\n", {}),
        ("a.jsonl", lines(*({"text": t[0], "label": v} for t, v in ROWS)), {}),
        (
            "a.data",
            "pos,fine\nneg,bad\n",
            {
                "format": "csv",
                "header": False,
                "columns": {"text": "2", "label": "1"},
            },
        ),
    ],
)
def test_one_table_in_every_way_of_writing_it(write, name, content, config):
    assert seen(read(write(name, content), **config)) == ROWS


@pytest.mark.filterwarnings("ignore")  # of datasets
def test_parquet_and_datasets_read_through_their_libraries(tmp_path):
    import datasets
    import pyarrow
    import pyarrow.parquet

    columns = {"text": ["fine", "bad"], "label": ["pos", "neg"]}
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    assert seen(read(str(path))) == ROWS

    names = datasets.ClassLabel(names=["neg", "pos"])
    features = datasets.Features({"text": datasets.Value("string"), "label": names})
    whole = datasets.Dataset.from_dict(
        {"text": columns["text"], "label": [1, 0]}, features
    )
    datasets.DatasetDict({"dev": whole}).save_to_disk(str(tmp_path / "saved"))
    assert seen(read(f"{tmp_path / 'saved'}:dev")) == ROWS
    fails("no split 'train'", "folder:split", train=str(tmp_path / "saved"))


TFDS_BUILDER = """
import sys
import tensorflow_datasets as tfds

class PlmjaxSentences(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        names = tfds.features.ClassLabel(names=["neg", "pos", "O", "B"])
        features = tfds.features.FeaturesDict({
            "text": tfds.features.Text(),
            "label": names,
            "tokens": tfds.features.Sequence(tfds.features.Text()),
            "tags": tfds.features.Sequence(names),
        })
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        words = {"tokens": ["fine", "day"], "tags": ["O", "B"]}
        yield 0, {"text": "fine é", "label": "pos", **words}

PlmjaxSentences(data_dir=sys.argv[1], file_format="array_record").download_and_prepare()
"""


@pytest.mark.filterwarnings("ignore")  # of tfds
def test_tensorflow_datasets(write, tmp_path):
    # In a process of its own: tfds wants the builder's class to be in a script.
    script = write("builder.py", TFDS_BUILDER)
    (tmp_path / "data").mkdir()
    folder = str(tmp_path / "data")
    subprocess.run([sys.executable, script, folder], check=True, capture_output=True)
    common = {"format": "tfds", "dataset": "plmjax_sentences"}
    assert seen(read(folder, **common)) == [(("fine é",), "pos")]
    tagged = read(f"{folder}:train", kind="tags", **common)
    assert seen(tagged) == [(("fine", "day"), ("O", "B"))]
    fails("tfds cannot read none", train=folder, format="tfds", dataset="none")
    fails("task.dataset is empty", code=2, train=folder, format="tfds")


def test_quotation_marks_are_csvs_and_plain_text_in_tsv(write):
    (first, _) = read(write("a.csv", CSV))
    assert first.texts == ("fine, and\nlong",)
    tsv = 'text\tlabel\nsay "so\tpos\n'
    assert seen(read(write("a.tsv", tsv))) == [(('say "so',), "pos")]


def test_where_an_example_is_from(write):
    path = write("a.csv", CSV)
    assert [e.where for e in read(path)] == [f"{path}:2", f"{path}:4"]
    path = write("a.jsonl", "\n" + lines({"text": "x", "label": 1, "id": "seven"}))
    (example,) = read(path)
    assert (example.where, example.id, example.label) == (f"{path}:2", "seven", "1")


def test_conll_by_tabs_blanks_and_columns(write):
    content = "-DOCSTART- -X- O\n\nNew NNP B-LOC\nYork NNP I-LOC\n \t\nsleeps VBZ O\n"
    path = write("a.conll", content)
    expected = [
        (("New", "York"), ("B-LOC", "I-LOC")),
        (("sleeps",), ("O",)),
    ]
    assert seen(read(path, kind="tags")) == expected
    assert [e.where[-2:] for e in read(path, kind="tags")] == [":3", ":6"]
    assert seen(read(path, {"tags": "2"}, kind="tags"))[0][1] == ("NNP", "NNP")
    path = write("b.tsv", "New York\tB\r\nsleeps\tO\r\n\r\n")
    assert seen(read(path, kind="tags")) == [(("New York", "sleeps"), ("B", "O"))]


def test_conllu_leaves_out_ranges_and_empty_nodes(write):
    def line(number, form, upos, xpos):
        return "\t".join([number, form, "_", upos, xpos, *"_____"]) + "\n"

    content = (
        "# text = don't go\n"
        + line("1-2", "don't", "_", "_")
        + line("1", "do", "AUX", "VBP")
        + line("2", "n't", "PART", "RB")
        + line("2.1", "you", "PRON", "PRP")
        + line("3", "go", "VERB", "VB")
        + "\n"
    )
    path = write("a.conllu", content)
    words = ("do", "n't", "go")
    assert seen(read(path, kind="tags")) == [(words, ("AUX", "PART", "VERB"))]
    xpos = read(path, {"tags": "XPOS"}, kind="tags")
    assert seen(xpos) == [(words, ("VBP", "RB", "VB"))]
    fails("'POS'", "UPOS", kind="tags", train=path, columns={"tags": "POS"})


def squad(*questions, context="The cat sat."):
    paragraphs = [{"context": context, "qas": list(questions)}]
    return json.dumps(
        {"version": "2.0", "data": [{"paragraphs": paragraphs}]}, indent=1
    )


def question(number, *answers, **more):
    found = [{"text": text, "answer_start": start} for text, start in answers]
    return {"id": number, "question": "Who?", "answers": found, **more}


def test_squad_with_and_without_answers(write):
    path = write(
        "a.json",
        squad(
            question("a", ("cat", 4), ("The cat", 0)),
            question("b", ("The", 0), is_impossible=True),
            question("c"),
        ),
    )
    examples = read(path, kind="answers")
    assert [e.id for e in examples] == ["a", "b", "c"]
    assert [e.label for e in examples] == [(("cat", 4), ("The cat", 0)), (), ()]
    assert examples[0].texts == ("Who?", "The cat sat.")
    text = Path(path).read_text().split("\n")
    for example in examples:
        line = int(example.where.rsplit(":", 1)[1])
        assert f'"id": "{example.id}"' in text[line - 1]


def test_answers_as_datasets_writes_them(write):
    record = {
        "id": 3,
        "question": "Who?",
        "context": "The cat sat.",
        "answers": {"text": ["cat"], "answer_start": [4]},
    }
    (example,) = read(write("a.jsonl", lines(record)), kind="answers")
    assert (example.id, example.label) == ("3", (("cat", 4),))


# --- kinds


def test_pairs_several_labels_numbers_and_choices(write):
    pair = write("a.csv", "q,a,label\nIs it?,Yes.,1\nWhy?,No.,0\n")
    assert seen(read(pair, {"text": "q", "pair": "a"})) == [
        (("Is it?", "Yes."), "1"),
        (("Why?", "No."), "0"),
    ]
    several = write("b.csv", 'text,label\nx,"b, a,b"\ny,\n')
    assert [e.label for e in read(several, kind="multilabel")] == [("b", "a"), ()]
    columns = write("c.csv", "text,rude,long\nx,0,1\ny,1,1\n")
    found = read(columns, {"label": "rude,long"}, kind="multilabel")
    assert [e.label for e in found] == [("long",), ("rude", "long")]
    numbers = write("d.csv", "text,label\nx,2.5\ny,-1e3\n")
    assert [e.label for e in read(numbers, kind="regression")] == [2.5, -1000.0]
    lists = write("e.jsonl", lines({"text": "It", "choices": ["a", "b"], "label": 1}))
    assert seen(read(lists, kind="choices")) == [(("It", "a", "b"), 1)]
    wide = write("f.csv", "text,stem,one,two,label\nIt,is,a,b,B\nIt,was,c,d,one\n")
    found = read(wide, {"choices": "one,two", "pair": "stem"}, kind="choices")
    assert seen(found) == [(("It", "is a", "is b"), 1), (("It", "was c", "was d"), 0)]


ENTITIES = {"entities": "a,b,c,d"}


def test_two_entities_are_marked_and_their_text_stays_together(write):
    text = "Ada met Bob."
    places = [
        dict(zip("abcd", at, strict=True)) for at in ((0, 3, 8, 11), (8, 11, 0, 3))
    ]
    # One within the other; one right after the other, with numbers as csv has them.
    places += [{"a": 0, "b": 7, "c": 4, "d": 7}, {"a": "0", "b": "4", "c": 4, "d": 7}]
    records = [{"text": text, "label": "x", **at} for at in places]
    found = read(write("a.jsonl", lines(*records)), ENTITIES)
    assert [example.texts[0] for example in found] == [
        "@ Ada @ met # Bob # .",
        "# Ada # met @ Bob @ .",
        "@ Ada # met # @ Bob.",
        "@ Ada @ # met # Bob.",
    ]
    assert len({example.unit for example in found}) == 1
    (other,) = read(
        write("b.jsonl", lines(records[0])), ENTITIES, markers=("<s>", "</s>")
    )
    assert other.texts[0] == "<s> Ada <s> met </s> Bob </s> ."


@pytest.mark.parametrize(
    "place, words",
    [
        (13, "0 to 13 of a text of 12"),
        (0, "0 to 0"),
        (1.5, "not a position"),
        (None, "'b'"),
    ],
)
def test_an_entity_that_is_not_in_its_text(write, place, words):
    record = {"text": "Ada met Bob.", "label": "x", "a": 0, "b": place, "c": 8, "d": 11}
    path = write("a.jsonl", lines(record))
    fails("a.jsonl:1", words, columns=ENTITIES, train=path)


def test_labels_are_in_order_of_numbers_or_names(write):
    path = write("a.csv", "text,label\n" + "".join(f"t{n},{n}\n" for n in (10, 9, 2)))
    assert load_labelled(TaskConfig(train=path)).labels == ("2", "9", "10")
    path = write("b.csv", "text,label\nx,b\ny,a\nz,c\n")
    assert load_labelled(TaskConfig(train=path)).labels == ("a", "b", "c")
    given = TaskConfig(train=path, labels=("c", "b", "a", "d"))
    assert load_labelled(given).labels == ("c", "b", "a", "d")


def test_unlabelled_data_need_no_label_column(write):
    path = write("a.jsonl", lines({"text": "x"}))
    (example,) = read_examples(TaskConfig(test=path), "test", labelled=False)
    assert example.label is None


def test_what_is_held_out_is_a_share_of_whole_units_whatever_the_order(write):
    rows = [f"text {n % 150},{n % 2}\n" for n in range(300)]
    data = load_labelled(
        TaskConfig(train=write("a.csv", "text,label\n" + "".join(rows)))
    )
    assert (len(data.train), len(data.held_out)) == (270, 30)
    assert not {e.unit for e in data.train} & {e.unit for e in data.held_out}
    _, again = hold_out([*data.held_out, *data.train][::-1], 10)
    assert {e.where for e in again} == {e.where for e in data.held_out}
    rows = [f"text {n},{n % 2},{n // 100}\n" for n in range(300)]
    path = write("b.csv", "text,label,who\n" + "".join(rows))
    data = load_labelled(TaskConfig(train=path, columns=ColumnsConfig(group="who")))
    assert (len(data.train), len(data.held_out)) == (200, 100)


# --- what is wrong


def test_a_label_that_train_does_not_have(write):
    train, test = write("a.csv", CSV), write("b.csv", "text,label\nx,pos\ny,poss\n")
    fails("b.csv:3", "'poss'", "pos", train=train, test=test)
    fails("a.csv:2", "'pos'", train=train, labels=("neg", "good"))


@pytest.mark.parametrize(
    "name, content, config, words",
    [
        ("a.csv", "txt,label\nx,1\n", {}, ["a.csv:2", "'text'", "txt", "task.columns"]),
        ("a.csv", "text,label\nx,1\ny,1\n", {}, ["'label' is '1'", "2 examples"]),
        ("a.csv", "text,label\n", {}, ["no examples"]),
        ("a.csv", "", {}, ["no examples"]),
        ("a.csv", "text,label\nx,1\ny\n", {}, ["a.csv:3", "1 fields", "2 columns"]),
        ("a.csv", 'text,label\nx,1\n"y,1\n', {}, ["a.csv:3", "quotation"]),
        ("a.csv", "text,label,text\nx,1,2\n", {}, ["a.csv:1", "'text'"]),
        ("a.csv", "text,label\nx,1\ny,0.5\n", {}, ["a.csv:3", "0.5", "regression"]),
        ("a.csv", "text,label\nx,1\ny,\n", {}, ["a.csv:3", "no label"]),
        ("a.csv", "text,label\nx,1\n ,2\n", {}, ["a.csv:3", "empty"]),
        ("a.csv", b"text,label\nx,1\n\xff,2\n", {}, ["a.csv:3", "0xff", "UTF-8"]),
        ("a.csv.gz", b"text,label\n", {}, ["a.csv.gz", "cannot be read"]),
        ("a.csv", CSV, {"kind": "regression"}, ["a.csv:2", "'pos'", "classes"]),
        ("a.csv", "text,label\nx,nan\n", {"kind": "regression"}, ["a.csv:2", "'nan'"]),
        ("a.jsonl", '{"text": "x", "label": 1}\n{"text"\n', {}, ["a.jsonl:2", "JSON"]),
        ("a.jsonl", '["x", 1]\n', {}, ["a.jsonl:1", "list"]),
        ("a.jsonl", "[" * 100_000 + "\n", {}, ["a.jsonl:1", "nested"]),
        ("a.jsonl", lines({"text": "x", "label": 0.7}), {}, ["a.jsonl:1", "0.7"]),
        ("a.jsonl", lines({"text": "x", "label": ["a"]}), {}, ["list", "multilabel"]),
        ("a.jsonl", lines({"text": 3, "label": "a"}), {}, ["a.jsonl:1", "int"]),
        (
            "a.jsonl",
            '{"text": "\\ud800", "label": 1}\n',
            {},
            ["a.jsonl:1", "surrogate"],
        ),
        ("a.conll", "a O\nb\n", {"kind": "tags"}, ["a.conll:2", "'b'", "no tag"]),
        ("a.conllu", "1\ta\tO\n", {"kind": "tags"}, ["a.conllu:1", "3 columns"]),
        (
            "a.jsonl",
            lines({"tokens": ["a", "b"], "tags": ["O"]}),
            {"kind": "tags"},
            ["a.jsonl:1", "2 tokens and 1 tags"],
        ),
        ("a.json", '{\n"data": [}', {"kind": "answers"}, ["a.json:2", "JSON"]),
        ("a.json", '{"dat": []}', {"kind": "answers"}, ["a.json", "'data'", "dat?"]),
        (
            "a.json",
            squad(question("a", ("cat", 5))),
            {"kind": "answers"},
            ["'cat'", "answer_start=5", "'at '", "at character 4", "keep"],
        ),
        (
            "a.json",
            squad(question("a", ("cat", 5)), context="Ça: cat"),
            {"kind": "answers"},
            ["at character 4", "bytes"],
        ),
        (
            "a.json",
            squad(question("a", ("dog", 4))),
            {"kind": "answers"},
            ["'dog'", "nowhere"],
        ),
        (
            "a.json",
            squad(question("a"), question("a")),
            {"kind": "answers"},
            ["'a'", "already"],
        ),
        (
            "a.jsonl",
            lines({"text": "x", "choices": ["a", "b"], "label": 2}),
            {"kind": "choices"},
            ["a.jsonl:1", "'2'", "2 choices", "0 to 1"],
        ),
    ],
)
def test_bad_data_are_named_by_file_and_line(write, name, content, config, words):
    fails(*words, train=write(name, content), **config)


def test_files_that_cannot_be_meant(write, tmp_path):
    fails("task.train is empty", code=2)
    fails("matches no file", code=2, train=str(tmp_path / "*.csv"))
    fails("not a folder", code=2, train=str(tmp_path / "none"), format="datasets")
    fails("task.format", code=2, train=write("a.doc", CSV))


def test_misplaced_answers_may_be_kept_for_scoring(write):
    path = write("a.json", squad(question("a", ("cat", 5), ("sat", 8))))
    (example,) = read(path, kind="answers", misplaced_answers="keep")
    assert example.label == (("cat", -1), ("sat", 8))
