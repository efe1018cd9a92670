import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest

from plmjax import PlmjaxError
from plmjax.data.columns import ColumnsConfig
from plmjax.data.examples import hold_out
from plmjax.tasks import KINDS
from plmjax.tasks.config import TaskConfig
from plmjax.tasks.labelled import load_labelled, read_examples
from plmjax.tasks.remarks import remarks

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
        ("a.csv", "sep=;\r\ntext;label\r\nfine;pos\r\nbad;neg\r\n", {}),
        ("a.csv", "text;label\nfine;pos\nbad;neg\n", {}),
        ("a.csv", '"text"|"label"\n"fine"|"pos"\n"bad"|"neg"\n', {}),
        ("a.csv", 'text\tlabel\n"fine"\tpos\nbad\tneg\n', {}),
        ("a.tsv", 'text,label\n"fine",pos\nbad,neg\n', {}),
        ("a.csv", "\ufefftext , label,,\nfine,pos,,\nbad,neg,,\n", {}),
        ("a.csv", "text,a;b,label\nfine,x,pos\nbad,y,neg\n", {}),
        ("a.csv", "text:label\nfine:pos\nbad:neg\n", {"separator": ":"}),
        ("a.csv", "sep=;\ntext,label\nfine,pos\nbad,neg\n", {"separator": ","}),
        ("a.csv", "text\tlabel\nfine\tpos\nbad\tneg\n", {"separator": "tab"}),
        ("a.json", json.dumps([{"text": t[0], "label": v} for t, v in ROWS]), {}),
        (
            "a.json",
            json.dumps([{"text": t[0], "label": v} for t, v in ROWS], indent=1),
            {},
        ),
        (
            "a.data",
            "pos,fine\nneg,bad\n",
            {"format": "csv", "header": False, "columns": {"text": "2", "label": "1"}},
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
    expected = [(("New", "York"), ("B-LOC", "I-LOC")), (("sleeps",), ("O",))]
    assert seen(read(path, kind="tags")) == expected
    assert [e.where[-2:] for e in read(path, kind="tags")] == [":3", ":6"]
    assert seen(read(path, {"tags": "2"}, kind="tags"))[0][1] == ("NNP", "NNP")
    path = write("b.tsv", "New York\tB\r\nsleeps\tO\r\n\r\n")
    assert seen(read(path, kind="tags")) == [(("New York", "sleeps"), ("B", "O"))]


@pytest.mark.parametrize(
    "content, columns, expected",
    [
        # U+00A0, U+2009 and U+3000 are part of a token, and of a sentence.
        (
            "10\u00a0000 B-N\n\u3000 O\n\u2009\tO\n",
            {},
            [("10\u00a0000", "\u3000", "\u2009")],
        ),
        (
            "a O\r\n \t\r\n\ufeffb O\r\n\f\r\nc O\r\n",
            {},
            [("a",), ("\ufeffb",), ("c",)],
        ),
        ("\ufeff-DOCSTART- -X- O\na NN O\n\nb NN O\n", {}, [("a",), ("b",)]),
        ("a O\rb O\r\rc O\r", {}, [("a", "b"), ("c",)]),  # an old Mac's lines
        ("\"\tO\n'\tO\n``\tO\n", {}, [('"', "'", "``")]),
        ("  a   O  \n\tb\tO\n", {"tokens": "2", "tags": "3"}, None),
        ("# id 9\n# x = y z\na\tO\n\n#\tO\n# b\n\n", {}, None),
        ("# newdoc\na\tO\n#\tO\n#b\tO\n", {}, [("a", "#", "#b")]),
        ("#b\tO\n#c\tB-X\n\na\tO\nb\tB-X\n", {}, [("#b", "#c"), ("a", "b")]),
        ("#begin document (x); part 0\na\tO\n\n#end document\n", {}, [("a",)]),
        (
            "#\thttp://x [2009]\n1\tAuf\tO\tO\n2\tBo\tB-X\tO\n",
            {"tokens": "2", "tags": "3"},
            [("Auf", "Bo")],
        ),
        (
            "d 0 In IN *\nd 1 Ada NNP (P) (1)\n",
            {"tokens": "3", "tags": "5"},
            [("In", "Ada")],
        ),
    ],
)
def test_tokens_of_conll(write, content, columns, expected):
    path = write("a.conll", content)
    if expected is None:
        fails("a.conll", columns=columns, train=path, kind="tags")
    else:
        assert [e.texts for e in read(path, columns, kind="tags")] == expected


def conll_lines(path, **config):
    notes = []
    config = TaskConfig(train=path, kind="tags", **config)
    examples = read_examples(config, "train", log=notes.append)
    return [example.texts for example in examples], notes


def test_tokens_without_a_character_are_counted(write):
    tokens, notes = conll_lines(write("a.conll", "a\tO\n \tO\nb\tO\n"))
    assert tokens == [("a", "", "b")]
    assert notes == ["task.train: tokens without a character: 1, first a.conll:2."]


def test_comments_of_conll_are_counted_and_words_with_hashes_stay(write):
    content = "# id 9f domain=en\nAda\tB-X\n\n# newdoc\n# x\n#\tO\nb\tO\n# \tO\n"
    tokens, notes = conll_lines(write("a.conll", content))
    assert tokens == [("Ada",), ("#", "b", "#")]
    (note,) = notes
    assert note == (
        "task.train: comment lines skipped: 3, first a.conll:1 '# id 9f domain=en'."
    )
    assert conll_lines(write("b.conll", "#\tO\na\tO\n")) == ([("#", "a")], [])


@pytest.mark.parametrize(
    "content, columns, words",
    [
        (
            "10 000 B-N\na O\nb O\n",
            {},
            ["a.conll:1", "3 columns", "2 of 3 lines", "tabs"],
        ),
        ("\ta\tO\n\tb\tO\n", {}, ["column 1, the tokens, is empty", "columns.tokens"]),
        ("a\tO\t\n", {}, ["a.conll:1", "the tag is empty", "columns.tags"]),
        ("1\ta\tO\n2\tb\tO\n\n1\tc\tO\n", {}, ["counts the words", "columns.tokens"]),
        ("0 a O\n1 b O\n", {"tags": "3"}, ["counts the words"]),
        ("d a O\nd b O\n\n" * 15, {}, ["the same in each sentence ('d')"]),
        ("B-X Tom\nI-X H\nO x\n", {}, ["has the tags", "task.columns.tags=1"]),
    ],
)
def test_columns_of_conll_that_cannot_be_meant(write, content, columns, words):
    fails(*words, columns=columns, train=write("a.conll", content), kind="tags")


def conllu(*words):
    return "".join(
        "\t".join([str(number), form, "_", tag, *"______"]) + "\n"
        for number, (form, tag) in enumerate(words, 1)
    )


def test_conllu_without_its_text(write):
    blank, plain = conllu(("_", "NOUN"), ("_", "VERB")), conllu(("New York", "NOUN"))
    underscore = conllu(("_", "SYM"), ("x", "VERB"))
    path = write("a.conllu", f"{blank}\n{plain}\n{underscore}\n{blank}\n")
    tokens, notes = conll_lines(path)
    assert tokens[1:3] == [("New York",), ("_", "x")]
    (note,) = notes
    assert "words that are _" in note and ": 4, first a.conllu:1." in note
    path = write("b.conllu", f"{blank}\n{blank}")
    fails("FORM of all 4 words is _", train=path, kind="tags")
    path = write("c.conllu", conllu(("a", "_"), ("b", "_")))
    fails("'tags' is '_' in all", train=path, kind="tags")


def test_conllu_plus_names_its_columns(write):
    content = "# global.columns = ID FORM NER\n1-2\tx\t_\n1\ta\tB-X\n2\tb\tO\n"
    path = write("a.conllup", content)
    assert seen(read(path, {"tags": "NER"}, kind="tags")) == [
        (("a", "b"), ("B-X", "O"))
    ]
    fails("'UPOS'", "ID, FORM, NER", train=path, kind="tags")


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
    fails("b.csv:3", "'poss'", "pos", "1 such", train=train, test=test)
    fails("a.csv:2", "'pos'", train=train, labels=("neg", "good"))


@pytest.mark.parametrize(
    "name, content, config, words",
    [
        ("a.csv", "txt,label\nx,1\n", {}, ["a.csv:2", "'text'", "txt", "task.columns"]),
        ("a.csv", "text,label\nx,1\ny,1\n", {}, ["'label' is '1'", "2 examples"]),
        ("a.csv", "text,label\n", {}, ["no examples"]),
        ("a.csv", "", {}, ["no examples"]),
        ("a.csv", "text,label\nx,1\ny\n", {}, ["a.csv:3", "1 fields", "2 columns"]),
        ("a.csv", "sep=;\ntext;label\nx;1\ny\n", {}, ["a.csv:4", "';'"]),
        ("a.csv", "x,1\ny,2\n", {}, ["a.csv:2", "'text'", "task.header=False"]),
        ("a.csv", "text, long;label\nx, y;2\n", {}, ["'label'", "task.separator=';'"]),
        (
            "a.csv",
            "x;1\ny;2\n",
            {"header": False, "columns": {"text": "1", "label": "2"}},
            ["a.csv:1", "'2'", "task.separator=';'"],
        ),
        (
            "a.csv",
            "text;label\nx;3,5\n",
            {"kind": "regression"},
            ["a.csv:2", "'3,5'", "decimal comma"],
        ),
        (
            "a.jsonl",
            lines({"data": {"text": "x"}, "label": 1}),
            {},
            ["a.jsonl:1", "inside 'data'"],
        ),
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


ASTRAL = "\U0001f600\U0001f600 Ada met  Bob.\r\nBob left, é."


@pytest.mark.parametrize(
    "unit, starts", [("characters", (12, 18)), ("utf16", (14, 20)), ("bytes", (18, 24))]
)
def test_offsets_of_answers_and_entities_in_each_unit(write, unit, starts):
    answers = [("Bob", start) for start in starts]
    path = write("a.json", squad(question("a", *answers), context=ASTRAL))
    (example,) = read(path, kind="answers", offsets=unit)
    assert example.label == (("Bob", 12), ("Bob", 18))
    other = {"characters": "bytes", "utf16": "characters", "bytes": "utf16"}[unit]
    names = {"characters": "characters", "utf16": "UTF-16 units", "bytes": "bytes"}
    counts = f"answer_start counts {names[unit]} in 2 of 2 answers"
    words = [counts, f"task.offsets={unit}", "(id a)", "2 of 2"]
    fails(*words, train=path, kind="answers", offsets=other)
    shift = starts[0] - 12
    at = dict(
        zip("abcd", (3 + shift, 6 + shift, *(s + shift for s in (12, 15))), strict=True)
    )
    path = write("b.jsonl", lines({"text": ASTRAL, "label": "x", **at}))
    (example,) = read(path, ENTITIES, offsets=unit)
    assert example.texts[0].startswith("\U0001f600\U0001f600 @ Ada @ met # Bob # .")


def test_an_offset_within_a_character_is_misplaced(write):
    for unit in ("utf16", "bytes"):
        path = write("a.json", squad(question("a", ("Ada", 1)), context=ASTRAL))
        fails("answer_start=1, where ''", train=path, kind="answers", offsets=unit)


def test_misplaced_answers_may_be_read_at_the_nearest_occurrence(write):
    text = "aa aa aa"
    answers = [("aa", 4), ("aa", 99), ("aa", -1), ("b", 0), ("aa", 3)]
    path = write("a.json", squad(question("a", *answers), context=text))
    notes = []
    config = TaskConfig("answers", train=path, misplaced_answers="nearest")
    (example,) = read_examples(config, "train", log=notes.append)
    starts = [start for _, start in example.label]
    assert starts == [3, 6, 0, -1, 3]
    assert ["nearest occurrence: 3" in note for note in notes] == [True, False]
    assert "nowhere in their context: 1" in notes[1]
    fails("4 of 5", "nearest", train=path, kind="answers")


def test_an_answer_in_another_form_is_named(write):
    for text in ("E\u0301mile", "émile", "x\n y"):
        path = write("a.json", squad(question("a", (text, 0)), context="Émile x y"))
        fails("other Unicode forms", train=path, kind="answers")


# --- what is remarked


def remarks_on(**config):
    return [*remarks(load_labelled(TaskConfig(**config)))]


TAGGED = "a B-X\nb {} \nc O\n\nd O\ne B-Y\n"


@pytest.mark.parametrize(
    "inner, words",
    [
        ("I-X", ["The tags are IOB2, of 2 kinds of entities (X, Y)"]),
        ("I-Y", ["IOB2", "Tags of train that break IOB2", ": 1 of 5"]),
        ("L-X", ["BILOU", ": 1 of 5"]),
        ("X", ["mark no entities", "of the others: X)"]),
        ("B", ["mark no entities", "of the others: B)"]),
    ],
)
def test_the_scheme_of_tags_is_named(write, inner, words):
    train = write("a.conll", TAGGED.format(inner))
    held_out = write("b.conll", "x O\ny O\n\nz O\n")
    found = " ".join(remarks_on(kind="tags", train=train, held_out=held_out))
    for word in words:
        assert word in found, found
    assert ("break" in found) == (inner in ("I-Y", "L-X"))  # B-Y needs L-Y
    assert ("no entities in held_out" in found) == (inner in ("I-X", "I-Y", "L-X"))


def test_the_first_scheme_of_iob_is_not_broken(write):
    train = write("a.conll", "a I-X\nb B-X\nc O\n\nd I-X\n")
    (line, *others) = remarks_on(kind="tags", train=train, held_out=train)
    assert "The tags are IOB1, of 1 kind of entities (X)" in line
    assert not [line for line in others if "break" in line]


def test_a_part_without_entities_has_the_scores_of_the_others(write):
    train = write("a.conll", TAGGED.format("I-X"))
    test = write("b.conll", "x O\ny O\n")
    data = load_labelled(TaskConfig("tags", train=train, held_out=train, test=test))
    kind = KINDS["tags"]
    truth = {
        split: [example.label for example in getattr(data, split)]
        for split in ("train", "test")
    }
    scores = {name: kind.scores(t, t, data.labels) for name, t in truth.items()}
    metric = kind.usual_metric(data.labels)
    assert metric == "entity_f1" and kind.tuning_metric(scores["test"]) == metric
    assert (scores["train"][metric], scores["test"][metric]) == (1, 0)
    counted = kind.counts(metric, truth["test"], data.labels)
    assert counted is not None
    count, score = counted
    assert count([("O", "B-X")]).tolist() == [[0, 1, 0]]
    assert score(count([("O", "O")]).sum(0)) == 0


def test_labels_and_examples_that_may_not_be_meant(write):
    train = write("a.csv", "text,label\na,pos\nb,pos\nc,Pos \nd,neg\ne,neg\n")
    held_out = write("b.csv", "text,label\na,pos\nx,neg\n")
    config = {"train": train, "held_out": held_out}
    assert remarks_on(**config) == [
        "Labels that differ only in spelling: 1 ('Pos' and 'pos'); each spelling is "
        "learned as its own label.",
        "Labels that are only once in train: 1 (Pos).",
        "Examples of held_out that are also in train: 1 of 2; their scores do not show "
        "what was learned.",
    ]
    held = write("f.csv", "text,label\nz,x\n")
    lines = remarks_on(**config, labels=("neg", "pos", "Pos", "new"))
    assert "Labels that are not in train: 1 (new)." in lines
    several = write("e.csv", "text,label\na,x;y\nb,x\nc,x\nd,y\ne,y\nf,x;y\n")
    (line,) = remarks_on(kind="multilabel", train=several, held_out=held)
    assert "Labels that contain ';': 1 of 3, as 'x;y'" in line
    assert "task.label_separator" in line
    clean = write("c.csv", "text,label\na,0\nb,0\nc,1\nd,1\n")
    other = write("d.csv", "text,label\ne,1\n")
    assert remarks_on(train=clean, held_out=other) == []


def test_misplaced_answers_may_be_kept_for_scoring(write):
    path = write("a.json", squad(question("a", ("cat", 5), ("sat", 8))))
    (example,) = read(path, kind="answers", misplaced_answers="keep")
    assert example.label == (("cat", -1), ("sat", 8))
