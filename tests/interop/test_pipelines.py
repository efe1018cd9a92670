"""What `plmjax finetune` exports says the same in transformers' pipelines."""

import json

import pytest
from finetune_common import make_folder, records, run, write

pytestmark = [pytest.mark.peer, pytest.mark.usefixtures("module_on_one_device")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("start") / "bert")


def fine_tuned(kind, tmp_path, folder):
    """Returns the exported folder, and our predictions of the held-out part."""
    write(tmp_path / "train.jsonl", records(kind, 40))
    write(tmp_path / "held_out.jsonl", records(kind, 8, seed=1))
    place = tmp_path / "run"
    run(place, folder, tmp_path, f"task.kind={kind}", "train.steps=4")
    lines = (place / "predictions-held_out.jsonl").read_text().splitlines()
    return str(place / "export"), [json.loads(line) for line in lines]


def test_classes(tmp_path, folder):
    transformers = pytest.importorskip("transformers")
    export, ours = fine_tuned("classes", tmp_path, folder)
    call = transformers.pipeline("text-classification", model=export)
    texts = [record["text"] for record in records("classes", 8, seed=1)]
    for said, line in zip(call(texts, top_k=None), ours, strict=True):
        theirs = {one["label"]: one["score"] for one in said}
        assert theirs == pytest.approx(line["probabilities"], abs=1e-5)
        assert said[0]["label"] == line["label"]


def test_tags(tmp_path, folder):
    transformers = pytest.importorskip("transformers")
    export, ours = fine_tuned("tags", tmp_path, folder)
    call = transformers.pipeline("token-classification", model=export)
    given = records("tags", 8, seed=1)
    for record, line in zip(given, ours, strict=True):
        pieces = call(" ".join(record["tokens"]), ignore_labels=[])
        begins = [0]
        for word in record["tokens"][:-1]:
            begins.append(begins[-1] + len(word) + 1)
        firsts = [piece for piece in pieces if piece["start"] in begins]
        assert [piece["entity"] for piece in firsts] == line["tags"]
        scores = [float(piece["score"]) for piece in firsts]
        assert scores == pytest.approx(line["probabilities"], abs=1e-5)


def test_answers(tmp_path, folder):
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    export, ours = fine_tuned("answers", tmp_path, folder)
    model = transformers.AutoModelForQuestionAnswering.from_pretrained(export).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(export)
    for record, line in zip(records("answers", 8, seed=1), ours, strict=True):
        rows = tokenizer(
            record["question"],
            record["context"],
            return_tensors="pt",
            return_offsets_mapping=True,
        )
        spans = rows.pop("offset_mapping")[0].tolist()
        own = rows.sequence_ids(0)
        with torch.no_grad():
            found = model(**rows)
        first, last = found.start_logits[0], found.end_logits[0]
        places = [n for n, of in enumerate(own) if of == 1]
        best = max(
            ((a, b) for a in places for b in places if a <= b),
            key=lambda ends: float(first[ends[0]] + last[ends[1]]),
        )
        nothing = float(first[0] + last[0])
        score = float(first[best[0]] + last[best[1]])
        text = record["context"][spans[best[0]][0] : spans[best[1]][1]]
        assert line["answer"] == ("" if nothing > score else text)
