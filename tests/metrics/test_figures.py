"""Every printed figure against its definition, written here in plain Python.

No code is shared with plmjax: answers, labels, numbers, tags, ranks, intervals. What a
model says, and what `evaluate` prints of it, is in test_evaluate.py.
"""

import contextlib
import itertools
import json
import math
import random
import statistics
from collections import Counter

import numpy as np
import pytest

from plmjax.experiments.pseudo_results import Round, curve, gains, settings
from plmjax.experiments.repeats import summary
from plmjax.metrics.comparison import SAME, compare, compare_by
from plmjax.metrics.entities import entities
from plmjax.metrics.retrieval import find_pairs
from plmjax.metrics.scores import confusion
from plmjax.report import curves as report
from plmjax.report.scores import as_text, score_lines, task_lines
from plmjax.tasks import KINDS

# --- classes, labels, numbers


def f1_of(right: int, mine: int, true: int) -> float:
    """Harmonic mean of precision and recall; 0 where there is neither."""
    if not right:
        return 0.0
    precision, recall = right / mine, right / true
    return 2 * precision * recall / (precision + recall)


def f1s_of(pairs, labels) -> list[float]:
    """F1 of each label of (true, predicted) pairs."""
    return [
        f1_of(
            sum(t == p == label for t, p in pairs),
            sum(p == label for _, p in pairs),
            sum(t == label for t, _ in pairs),
        )
        for label in labels
    ]


def correlation(a, b) -> float:
    """Pearson's, nan of a constant."""
    mean_a, mean_b = sum(a) / len(a), sum(b) / len(b)
    both = sum((x - mean_a) * (y - mean_b) for x, y in zip(a, b, strict=True))
    spread = math.sqrt(sum((x - mean_a) ** 2 for x in a))
    spread *= math.sqrt(sum((y - mean_b) ** 2 for y in b))
    return both / spread if spread > 1e-9 else math.nan


def mcc_of(pairs, labels) -> float:
    """Gorodkin's: the correlation of what is and what is said, over all classes."""
    n = len(pairs)

    def covariance(first, second) -> float:
        total = 0.0
        for label in labels:
            a = [float(pair[first] == label) for pair in pairs]
            b = [float(pair[second] == label) for pair in pairs]
            mean_a, mean_b = sum(a) / n, sum(b) / n
            total += sum((x - mean_a) * (y - mean_b) for x, y in zip(a, b, strict=True))
        return total

    spread = covariance(0, 0) * covariance(1, 1)
    return covariance(0, 1) / math.sqrt(spread) if spread > 1e-9 else 0.0


@pytest.mark.parametrize(
    "labels, drawn, count",
    [
        ("ab", "ab", 60),
        ("ba", "aab", 41),  # the second in the order given is the one of `f1`
        ("abcde", "abbcd", 80),  # e never occurs
        ("ab", "a", 5),
        ("abc", "abc", 1),
        ("ab", "b", 1),
    ],
)
def test_classes(labels, drawn, count):
    chance = random.Random(len(labels) + count)
    truth, said = (chance.choices(drawn, k=count) for _ in range(2))
    pairs = [*zip(truth, said, strict=True)]
    accuracy = sum(t == p for t, p in pairs) / count
    occurring = sorted({*truth, *said})
    wanted = {
        "accuracy": accuracy,
        "f1_micro": accuracy,
        "f1_macro": sum(f1s_of(pairs, occurring)) / len(occurring),
        "mcc": mcc_of(pairs, labels),
    }
    if len(labels) == 2:
        wanted["f1"] = f1s_of(pairs, labels)[1]
    found = KINDS["classes"].scores(truth, said, [*labels])
    assert found == pytest.approx(wanted)
    for i, j in itertools.product(range(len(labels)), repeat=2):
        times = sum(pair == (labels[i], labels[j]) for pair in pairs)
        assert confusion(truth, said, [*labels])[i, j] == times


@pytest.mark.parametrize("labels, count", [("abcd", 70), ("abz", 9), ("a", 1)])
def test_sets_of_labels(labels, count):
    """The last of three, z, never occurs, and counts as 0 in the mean of all."""
    chance = random.Random(count)

    def draw():
        return tuple(n for n in labels if n != "z" and chance.random() < 0.45)

    truth, said = ([draw() for _ in range(count)] for _ in range(2))
    right, mine, true = (
        [sum(n in a and n in b for a, b in zip(x, y, strict=True)) for n in labels]
        for x, y in ((truth, said), (said, said), (truth, truth))
    )
    each = [f1_of(*three) for three in zip(right, mine, true, strict=True)]
    wanted = {
        "accuracy": sum(set(a) == set(b) for a, b in zip(truth, said, strict=True))
        / count,
        "f1_micro": f1_of(sum(right), sum(mine), sum(true)),
        "f1_macro": sum(each) / len(labels),
    }
    found = KINDS["multilabel"].scores(truth, said, [*labels])
    assert found == pytest.approx(wanted)


@pytest.mark.parametrize(
    "truth, said",
    [
        ([0.5, -1.0, 2.0, 3.5, 0.25], [0.1, 0.0, 1.0, 9.0, 0.3]),
        ([1.0, 2, 2, 3, 3, 3, 0], [2.0, 1, 2, 2, 5, 2, 2]),  # ties on both sides
        ([1.0, 2.0, 3.0], [7.0, 7.0, 7.0]),
        ([1.0, 2.0], [2.0, 1.0]),
        ([1.0], [2.5]),
    ],
    ids=["plain", "ties", "constant", "two", "one"],
)
def test_numbers(truth, said):
    def ranks(values):
        return [
            sum(x < value for x in values) + (values.count(value) + 1) / 2
            for value in values
        ]

    wanted = {
        "pearson": correlation(truth, said),
        "spearman": correlation(ranks(truth), ranks(said)),
        "mse": sum((t - p) ** 2 for t, p in zip(truth, said, strict=True)) / len(said),
    }
    found = KINDS["regression"].scores(truth, said, ())
    assert found == pytest.approx(wanted, nan_ok=True)


def test_choices_and_ranks():
    truth, said = [0, 2, 1, 3, 0], [0, 1, 1, 3, 2]
    assert KINDS["choices"].scores(truth, said, ()) == pytest.approx({"accuracy": 0.6})
    found = KINDS["embeddings"].scores([1] * 5, [1, 2, 1, 4, 5], ())
    mrr = (1 + 1 / 2 + 1 + 1 / 4 + 1 / 5) / 5
    assert found == pytest.approx({"accuracy_at_1": 0.4, "mrr": mrr})
    found = KINDS["embeddings"].scores([1], [3], ())
    assert found == pytest.approx({"accuracy_at_1": 0.0, "mrr": 1 / 3})


# --- tags


def begins(before: str, tag: str) -> bool:
    """Whether an entity begins at a tag, by the rules of CoNLL 2000's script."""
    if tag == "O":
        return False
    if before == "O" or before[0] in "ES" or before[2:] != tag[2:]:
        return True
    return tag[0] in "BS"


def spans_of(tags, strict: bool) -> set:
    """Every stretch is tried: does it begin, go on and end as an entity does?"""
    found = set()
    padded = ["O", *tags, "O"]
    for first, last in itertools.combinations(range(1, len(padded)), 2):
        own = padded[first:last]
        if strict:
            kind = own[0][2:]
            whole = own[0][0] == "B" and all(tag == f"I-{kind}" for tag in own[1:])
            whole &= padded[last] != f"I-{kind}"
        else:
            whole = begins(padded[first - 1], own[0])
            whole &= all(
                tag != "O" and not begins(before, tag)
                for before, tag in itertools.pairwise(own)
            )
            after = padded[last]
            whole &= after == "O" or begins(own[-1], after)
        if whole:
            found.add((own[0][2:], first - 1, last - 1))
    return found


@pytest.mark.parametrize(
    "names",
    [
        ("O", "B-X", "I-X", "B-Y", "I-Y"),
        ("O", "B-X", "I-X", "E-X", "S-X", "E-Y", "S-Y", "I-Y"),
        ("NN", "VB", "O", "DT"),
    ],
    ids=["IOB", "IOBES", "parts of speech"],
)
def test_tags_and_entities(names):
    chance = random.Random(1)
    truth = [tuple(chance.choices(names, k=chance.randrange(1, 8))) for _ in range(250)]
    said = [
        tuple(t if chance.random() < 0.6 else chance.choice(names) for t in own)
        for own in truth
    ]
    flat = [*zip(itertools.chain(*truth), itertools.chain(*said), strict=True)]
    accuracy = sum(t == p for t, p in flat) / len(flat)
    wanted = {
        "tag_accuracy": accuracy,
        "tag_f1_micro": accuracy,
        "tag_f1_macro": sum(f1s_of(flat, names)) / len(names),
    }
    if "B-X" in names:
        for strict in (False, True):
            true = [spans_of(tags, strict) for tags in truth]
            mine = [spans_of(tags, strict) for tags in said]
            for tags, own in zip(truth, true, strict=True):
                assert entities(tags, strict=strict) == own, tags
            right = sum(len(a & b) for a, b in zip(true, mine, strict=True))
            found, there = sum(map(len, mine)), sum(map(len, true))
            assert right > 20
            if strict:
                wanted["entity_f1_strict"] = f1_of(right, found, there)
            else:
                wanted["entity_precision"] = right / found
                wanted["entity_recall"] = right / there
                wanted["entity_f1"] = f1_of(right, found, there)
    assert KINDS["tags"].scores(truth, said, names) == pytest.approx(wanted)


def test_tags_that_never_occur_and_nothing_found():
    found = KINDS["tags"].scores([("B-X", "O")], [("O", "O")], ("B-X", "I-X", "O"))
    assert found == pytest.approx(
        {
            "tag_accuracy": 1 / 2,
            "tag_f1_micro": 1 / 2,
            "tag_f1_macro": (2 / 3 + 0) / 2,
            "entity_precision": 0,
            "entity_recall": 0,
            "entity_f1": 0,
            "entity_f1_strict": 0,
        }
    )


# --- which text belongs to which


def test_ranks_of_pairs_are_counted_one_by_one():
    """Texts and pairs that are there twice, a text that is its own candidate."""
    chance = np.random.default_rng(0)
    number = chance.integers(0, 14, (24, 3))
    number[:, 1:] += 7  # some texts are candidates, too
    vector_of = chance.normal(size=(40, 3)).astype(np.float32)
    temperature = 0.3
    found = find_pairs(vector_of[number], number, temperature)

    def cosine(a: int, b: int) -> float:
        x, y = vector_of[a].astype(float), vector_of[b].astype(float)
        return float(x @ y / math.sqrt((x @ x) * (y @ y)))

    pairs = {int(n) for n in number[:, 1]}
    others = {int(n) for n in number[:, 2]} - pairs
    for (text, own, _), one in zip(number.tolist(), found, strict=True):
        also = {int(b) for a, b in number[:, :2] if a == text and b != own}
        left = (pairs | others) - also - ({text} - {own})
        rank = 1 + sum(
            cosine(text, c) > cosine(text, own) for c in left & pairs if c != own
        )
        total = sum(math.exp(cosine(text, c) / temperature) for c in left)
        assert one.rank == rank
        assert one.cosine == pytest.approx(cosine(text, own), abs=1e-5)
        loss = math.log(total) - cosine(text, own) / temperature
        assert one.loss == pytest.approx(loss, abs=1e-4)
    assert len({one.rank for one in found}) > 5


# --- intervals

# Of Student's t, 97.5 % with n - 1 degrees of freedom, from a table.
STUDENT = {2: 12.7062047, 3: 4.30265273, 5: 2.77644511, 10: 2.26215716}


@pytest.mark.parametrize("n", STUDENT)
@pytest.mark.parametrize("folds", [None, 5])
def test_intervals_of_a_few_runs(n, folds):
    chance = random.Random(n)
    a, b = ([chance.random() for _ in range(n)] for _ in range(2))
    share = 0.0 if folds is None else 1 / (folds - 1)
    apart = [x - y for x, y in zip(a, b, strict=True)]
    for values, found, middle in (
        (apart, compare(a, b, test_share=share), "difference"),
        (a, summary(a, share), "mean"),
    ):
        mean, deviation = sum(values) / n, statistics.stdev(values)
        reach = STUDENT[n] * deviation * math.sqrt(1 / n + share)
        assert getattr(found, middle) == pytest.approx(mean)
        assert (found.low, found.high) == pytest.approx((mean - reach, mean + reach))
    assert (summary(a).least, summary(a).most) == (min(a), max(a))
    assert summary(a).deviation == pytest.approx(statistics.stdev(a))
    # A gain of pseudo-labels has the same interval.
    rounds = [
        Round(str(k), rate, number, "accuracy", 1, {"accuracy": values[k]})
        for rate, number, values in ((0.0, 0, b), (1.0, 1, b), (1.0, 2, a))
        for k in range(n)
    ]
    (gained,) = gains(rounds, folds)
    reach = STUDENT[n] * statistics.stdev(apart) * math.sqrt(1 / n + share)
    mean = sum(apart) / n
    assert gained["difference"] == pytest.approx(mean)
    assert gained["low"] == pytest.approx(mean - reach)
    assert gained["high"] == pytest.approx(mean + reach)


def test_rounds_of_pseudo_labels_are_averaged_over_chains():
    """A gain is that of the last round; folds are judged by what they hold out."""
    rounds = []
    for chain, (first, once, twice) in enumerate(((1, 5, 8), (2, 4, 16), (6, 3, 3))):
        for rate, number, value in ((0.0, 0, first), (0.5, 1, once), (0.5, 2, twice)):
            scores = {"f1": float(value)}, {"f1": 10.0 * value}
            rounds.append(Round(str(chain), rate, number, "f1", 9, *scores))
    found = {(s.rate, s.round): s for s in settings(rounds)}
    assert found[0.0, 0].mean == pytest.approx({"held_out": 3, "test": 30})
    assert found[0.5, 1].mean == pytest.approx({"held_out": 4, "test": 40})
    assert found[0.5, 2].mean == pytest.approx({"held_out": 9, "test": 90})
    deviation = statistics.stdev([8, 16, 3])
    assert found[0.5, 2].deviation["held_out"] == pytest.approx(deviation)
    assert {s.chains for s in found.values()} == {3}
    assert curve(rounds, "test") == {0.0: [10, 20, 60], 0.5: [80, 160, 30]}
    (by_fold,), (by_seed,) = gains(rounds, 3), gains(rounds, None)
    assert (by_fold["split"], by_fold["difference"]) == ("held_out", pytest.approx(6))
    assert (by_seed["split"], by_seed["difference"]) == ("test", pytest.approx(60))
    assert gains([r for r in rounds if r.chain == "0"], None) == []


def test_the_bootstrap_has_the_interval_of_the_normal_law():
    """Of 900 pairs, within a tenth of its reach: by means, and by any score."""
    chance = np.random.default_rng(0)
    a = chance.random(900) < 0.8
    b = a ^ (chance.random(900) < 0.15)  # mostly right of the same texts
    apart = a.astype(float) - b
    mean, reach = apart.mean(), 1.959964 * apart.std(ddof=1) / 30

    def share(truth, said):
        return float(np.mean(said))

    for found in (
        compare(a, b, method="bootstrap", draws=3000),
        compare_by(share, a, a.tolist(), b.tolist()),
    ):
        assert found.difference == pytest.approx(mean)
        assert found.low == pytest.approx(mean - reach, abs=0.1 * reach)
        assert found.high == pytest.approx(mean + reach, abs=0.1 * reach)
        assert found.verdict == "a is higher"


@pytest.mark.parametrize(
    "apart, verdict",
    [
        ([0.1] * 5, SAME),  # too few to say that it is no chance
        ([0.1] * 6, "a is higher"),
        ([-0.1] * 6, "b is higher"),
        ([0.0] * 6, SAME),
        ([0.3, 0.31, 0.32], "a is higher"),
        ([-0.3, -0.31, -0.32], "b is higher"),
        ([0.3, 0.1, -0.1], SAME),
        ([-0.3, -0.1, 0.1], SAME),
    ],
)
def test_a_verdict_needs_an_interval_that_leaves_0_out(apart, verdict):
    values = np.array(apart)
    assert compare(values + 0.5, np.full(len(apart), 0.5)).verdict == verdict


# --- figures as text


def test_scores_are_told_as_they_are():
    result = {
        "metric": "f1",
        "step": 7,
        "held_out": {"loss": 0.51234, "exact_match": 0.25, "f1": 0.33339},
        "test": {"loss": 1.5, "exact_match": 0.75, "f1": 0.5},
    }
    assert task_lines(result) == [
        "Held-out: f1 0.3334, loss 0.5123, exact match 0.2500.",
        "Test: f1 0.5000, loss 1.5000, exact match 0.7500.",
    ]
    assert as_text("accuracy", 0.12345) == "12.3%"
    assert as_text("mlm_accuracy", 0.12345, 4) == "12.35%"
    assert as_text("bits_per_byte", 1.23456) == "1.235"
    assert as_text("perplexity", 123.456) == "123.5"
    assert as_text("loss", 2.34567, 4) == "2.3457"


@pytest.mark.parametrize("baseline, told", [(3.5, "1.25 nats better"), (2.0, "WORSE")])
def test_a_loss_is_held_against_the_unigram_baseline(baseline, told):
    class Objective:
        token_loss = "loss"

    values = {"loss": 2.25, "accuracy": 0.5, "perplexity": 9.4877}
    first, second = score_lines(Objective, values, baseline)
    assert "Held-out loss 2.250 nats" in first and told in first
    assert f"unigram baseline {baseline:.3f}" in first
    assert second == "Accuracy 50.0%, perplexity 9.5."


@pytest.mark.parametrize(
    "loss, baseline", [(None, 2.0), (math.nan, 2.0), (0.0, None), (2.25, None)]
)
def test_where_nothing_is_predicted_no_figure_is_told(loss, baseline):
    class Objective:
        token_loss = "loss"

    (line,) = score_lines(Objective, {"loss": loss, "accuracy": 0.0}, baseline)
    assert "no token of the held-out text was predicted" in line
    assert not any(letter.isdigit() for letter in line) and "better" not in line
    assert as_text("loss", math.nan) == as_text("loss", None) == "-"


# --- plots


@pytest.fixture
def drawn(monkeypatch):
    """The axes of each plot by its file's name, in place of the file."""
    from matplotlib.figure import Figure

    axes = {}

    @contextlib.contextmanager
    def png(path, inches=(7, 4.2)):
        axes[path.stem] = Figure().subplots()
        yield [axes[path.stem]]

    monkeypatch.setattr(report, "png", png)
    return axes


def points(line) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in zip(*line.get_data(), strict=True)]


def test_curves_show_what_was_recorded(drawn, tmp_path):
    records = [
        {"kind": kind, "step": n, "tokens": 2e6 * n, "seconds": 30.0 * n, "loss": 9 / n}
        | {"pair_loss": n / 10, "f1": n / 20}
        for n in (1, 2, 3)
        for kind in ("train", "evaluation")
        if n != 2 or kind == "train"
    ]
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (tmp_path / "metrics.jsonl").write_text(lines)
    report.plot_curves(tmp_path, "loss", 4.5)
    axes = {"step": 1, "tokens": 2, "seconds": 0.5}
    assert drawn.keys() == {*(f"loss_by_{axis}" for axis in axes), "pair_loss_by_step"}
    for axis, scale in axes.items():
        train, held_out, baseline = drawn[f"loss_by_{axis}"].lines
        assert points(train) == [(n * scale, 9 / n) for n in (1, 2, 3)]
        assert points(held_out) == [(n * scale, 9 / n) for n in (1, 3)]
        assert set(baseline.get_ydata()) == {4.5}
        legend = drawn[f"loss_by_{axis}"].get_legend().get_texts()
        names = ["training", "held out", "unigram baseline"]
        assert [text.get_text() for text in legend] == names
    title = "loss on predicted tokens, training and held out"
    assert drawn["loss_by_step"].get_title() == f"{tmp_path.name}: {title}"
    train, held_out = drawn["pair_loss_by_step"].lines
    assert points(train) == [(n, n / 10) for n in (1, 2, 3)]
    report.plot_scores(tmp_path, "f1")
    (line,) = drawn["f1_by_step"].lines
    assert points(line) == [(1, 1 / 20), (3, 3 / 20)]


@pytest.mark.parametrize("count", [3, 45])
def test_a_confusion_shows_truth_in_rows(count, drawn, tmp_path):
    """Of more than 40 labels those that are true most often."""
    chance = random.Random(0)
    labels = [f"l{n:02}" for n in range(count)]
    truth = [labels[n] for n in range(count) for _ in range(1 + n)]
    said = [t if chance.random() < 0.5 else chance.choice(labels) for t in truth]
    report.plot_confusion(tmp_path / "confusion.png", truth, said, labels)
    plot, pairs = drawn["confusion"], Counter(zip(truth, said, strict=True))
    kept = labels[-40:]
    assert [text.get_text() for text in plot.get_yticklabels()] == kept
    assert [text.get_text() for text in plot.get_xticklabels()] == kept
    times = {t.get_position(): int(t.get_text()) for t in plot.texts}
    shades = plot.images[0].get_array()
    for (row, true), (column, mine) in itertools.product(enumerate(kept), repeat=2):
        assert times.get((column, row), 0) == pairs[true, mine]
        of = sum(pairs[true, other] for other in kept)
        assert shades[row, column] == pytest.approx(pairs[true, mine] / max(of, 1))


@pytest.mark.parametrize(
    "labels",
    [
        ["no", "yes"],
        ["entailment", "neutral", "contradiction"],
        [f"a class with a name of many words, number {n}" for n in range(8)],
    ],
)
def test_nothing_of_a_confusion_is_cut_off(labels, monkeypatch, tmp_path):
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    drawn, real = [], report.png

    @contextlib.contextmanager
    def png(path, inches):
        with real(path, inches) as axes:
            drawn.extend(axes)
            yield axes

    monkeypatch.setattr(report, "png", png)
    path = tmp_path / ("run-with-a-name-" * 6) / "plots" / "confusion.png"
    path.parent.mkdir(parents=True)
    report.plot_confusion(path, labels * 3, labels * 3, labels)
    (plot,) = drawn
    figure = plot.figure
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    ticks = [*plot.get_xticklabels(), *plot.get_yticklabels()]
    for tick, label in zip(ticks, labels * 2, strict=True):
        assert tick.get_text()[:29] == label[:29]
    for text in (*ticks, plot.xaxis.label, plot.yaxis.label, figure._suptitle):
        box = text.get_window_extent(renderer)
        assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1, text
        assert figure.bbox.y0 <= box.y0 and box.y1 <= figure.bbox.y1, text
    matrix = plot.get_window_extent(renderer)
    assert matrix.width > 100 * 0.42 * len(labels)  # pixels, 100 an inch
    gaps = [t.get_window_extent(renderer) for t in plot.get_xticklabels()]
    assert all(a.x1 < b.x0 for a, b in itertools.pairwise(gaps))


def test_scores_by_rate_are_means_with_deviations(drawn, tmp_path):
    curves = {"held_out": {0.0: [1.0, 3.0], 0.5: [4.0, 8.0]}, "test": {0.0: [5.0]}}
    report.plot_rates(tmp_path / "rates.png", "f1", curves)
    plot = drawn["rates"]
    assert points(plot.lines[0]) == [(0.0, 2.0), (0.5, 6.0)]
    ((_, _, (bars,)),) = plot.containers
    spread = [[y for _, y in bar] for bar in bars.get_segments()]
    reach = [statistics.stdev(values) for values in curves["held_out"].values()]
    assert np.array(spread) == pytest.approx(
        np.array([[2 - reach[0], 2 + reach[0]], [6 - reach[1], 6 + reach[1]]])
    )
    assert [(0.0, 1.0), (0.0, 3.0)] in map(points, plot.lines)
    assert points(plot.lines[-1]) == [(0.0, 5.0)]
