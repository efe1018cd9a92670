"""Mixtures: shares as asked, exact in resume, on any processes, and by phase."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from test_epochs import OPTIONS, Ids, Stream
from test_resume import assert_same_run
from tests_common import sentences

from plmjax import PlmjaxError
from plmjax import config as config_lib
from plmjax.data.config import DataConfig
from plmjax.data.corpus import SourceConfig, make_source
from plmjax.data.loader import Loader, Phase, ramped
from plmjax.data.mixture import (
    PERIOD,
    JoinedSplit,
    JoinedStore,
    MixedSource,
    join_plans,
    limited,
    make_mix,
    phase_weights,
    sampled_documents,
)
from plmjax.data.rows import gather, make_plan
from plmjax.data.store import Split
from plmjax.pretrain import mixtures
from plmjax.tokenizers.train import sample_documents


class Part(Stream, Split):
    """Stands for a source's Split; its tokens say of which source they are."""

    def __init__(self, documents: int, base: int):
        Stream.__init__(self, documents)
        self.base, self.documents, self.tokens = base, documents, 10 * documents

    def read(self, index):
        return (index + self.base).astype(np.int32), index % 2 == 1


SIZES = {"en": 600, "eo": 120, "zh": 40}
BASES = (10_000, 20_000, 30_000)


def entries(**given: dict) -> tuple[dict, ...]:
    """Returns data.mixture of the three sources with these keys."""
    return tuple({"name": n, "paths": n, **given.get(n, {})} for n in SIZES)


class Stores:
    """Stands for a JoinedStore of three sources whose documents are rows."""

    def __init__(self):
        parts = zip(SIZES.values(), BASES, strict=True)
        self.joined = JoinedSplit([Part(n, base) for n, base in parts])

    def split(self, name):
        return self.joined


def mixed(data: DataConfig, *shapes: tuple[int, int, int], seed: int = 3, mine=None):
    """Returns the loader of phases (steps, length, batch), and the sources' facts."""
    store, plans = Stores(), {}
    if len(shapes) > 1:
        data = dataclasses.replace(data, phases=shapes)
    for _, length, _ in shapes:
        parts = [make_plan(part, length, packed=False) for part in store.joined.parts]
        plans.setdefault(length, join_plans(store.joined, parts))
    phases = [Phase(steps, batch, plans[n]) for steps, n, batch in shapes]
    if data.batch_ramp:
        phases = ramped(phases, *data.batch_ramp)
    phases, facts = mixtures.mix(data, store, phases)
    options = {} if mine is None else {"mine": mine}
    return Loader(store.joined, phases, Ids(), seed, **options), facts


def sources_of(loader: Loader, first: int, end: int) -> np.ndarray:
    """Returns [rows] the number of the source of each row of some steps, in order."""
    tokens = [loader.batch(step)["tokens"][:, 1] for step in range(first, end)]
    return np.concatenate(tokens) // 10_000 - 1


@pytest.mark.parametrize("shares", [(0.5, 0.3, 0.2), (0.9, 0.0999, 0.0001), (1.0,)])
def test_every_stretch_of_rows_has_the_shares(shares):
    mix = make_mix(np.array(shares), np.zeros(len(shares), int))
    assert mix.count_S.sum() == PERIOD
    source, place = mix.locate(np.arange(3 * PERIOD))
    for number, share in enumerate(shares):
        here = source == number
        # Rows of a source are numbered in their order.
        np.testing.assert_array_equal(place[here], np.arange(here.sum()))
        ahead = np.cumsum(here) - share * np.arange(1, 1 + len(here))
        assert np.abs(ahead).max() < 2 + 3 * 0.5
    for rows in (0, 1, 77, PERIOD, 2 * PERIOD + 5):
        seen = np.bincount(source[:rows], minlength=len(shares))
        np.testing.assert_array_equal(mix.read(rows), seen)


def test_weights_and_temperatures():
    def shares(temperature, *weights, phases=1, tokens=(800, 100, 100)):
        names = zip("abc", weights, strict=True)
        some = [MixedSource(name=name, paths="x", weight=w) for name, w in names]
        return phase_weights(some, temperature, tokens, phases)

    none = (None, None, None)
    np.testing.assert_allclose(shares(None, *none), [[0.8, 0.1, 0.1]])
    np.testing.assert_allclose(shares(1.0, *none), [[0.8, 0.1, 0.1]])
    root = np.sqrt([8, 1, 1])
    np.testing.assert_allclose(shares(2.0, *none)[0], root / root.sum())
    np.testing.assert_allclose(shares(None, 2, 1, 1), [[0.5, 0.25, 0.25]])
    # Both: a weight says how much more than by its size.
    np.testing.assert_allclose(shares(1.0, 1, 2, None), [[8 / 11, 2 / 11, 1 / 11]])
    by_phase = shares((1.0, 1e9), (1, 1), (0, 1), 1, phases=2)
    np.testing.assert_allclose(by_phase, [[8 / 9, 0, 1 / 9], [1 / 3] * 3])


def test_a_limited_source_leaves_its_share_to_the_others():
    share = np.array([0.5, 0.3, 0.2])
    np.testing.assert_allclose(limited(share, 1000, np.full(3, np.inf)), share)
    most = np.array([np.inf, 60, np.inf])
    expected = [0.94 * 5 / 7, 0.06, 0.94 * 2 / 7]
    np.testing.assert_allclose(limited(share, 1000, most), expected)
    # What the second one leaves makes the third one reach its limit, too.
    most = np.array([np.inf, 60, 250])
    np.testing.assert_allclose(limited(share, 1000, most), [0.69, 0.06, 0.25])
    with pytest.raises(PlmjaxError, match="leaves 900 rows for a phase of 1,000"):
        limited(share, 1000, np.full(3, 300))


def test_rows_are_of_their_sources_and_each_once_an_epoch():
    data = DataConfig(mixture=entries(), mixture_temperature=2.0)
    loader, facts = mixed(data, (75, 16, 16))
    source = sources_of(loader, 0, 75)
    root = np.sqrt([*SIZES.values()])
    counts = np.bincount(source)
    np.testing.assert_allclose(counts, 1200 * root / root.sum(), atol=1)
    rows = np.concatenate([loader.rows(step)[1] for step in range(75)])
    for number, (fact, size) in enumerate(zip(facts, SIZES.values(), strict=True)):
        mine = rows[source == number]
        assert fact["epochs"] == pytest.approx(len(mine) / size)
        for begin in range(0, len(mine) - size + 1, size):  # each complete epoch
            assert len(set(mine[begin : begin + size])) == size
        orders = mine[: len(mine) // size * size].reshape(-1, size)
        for one, other in zip(orders, orders[1:], strict=False):
            assert (one == other).mean() < 0.2
    # As the part's own plan lays them out.
    part, plan = loader.split.parts[1], make_plan(loader.split.parts[1], 16, False)
    first = int(loader.phases[0].plan.bounds[1])
    batch = loader.batch(0)
    here = np.flatnonzero(source[:16] == 1)
    alone = gather(part, plan, rows[:16][here] - first, 1, 2, 0)
    for name in ("tokens", "segments", "positions", "word_start", "cut"):
        np.testing.assert_array_equal(batch[name][here], alone[name])


def test_any_process_at_any_step_reads_the_same_rows():
    """Whatever came before it, and whatever the others read."""
    data = DataConfig(mixture=entries(), mixture_temperature=3.0)
    shapes = (20, 16, 16), (9, 24, 8)
    whole = mixed(data, *shapes)[0]
    for step in (28, 3, 17):
        expected = whole.batch(step)
        for processes in (1, 2, 4):
            for process in range(processes):

                def mine(batch, process=process, count=processes):
                    return np.arange(batch).reshape(count, -1)[process]

                found = mixed(data, *shapes, mine=mine)[0].batch(step)
                for name, array in expected.items():
                    rows = mine(len(array))
                    np.testing.assert_array_equal(found[name], array[rows])
    skipped = whole.batch(3, 5)["tokens"]
    np.testing.assert_array_equal(skipped, whole.batch(8)["tokens"])


def test_stages_change_at_their_phases_and_epochs_go_on():
    stages = {"en": (3, 1, 1), "eo": (1, 1, 0), "zh": (0, 2, 1)}
    data = DataConfig(
        mixture=entries(**{name: {"weight": w} for name, w in stages.items()}),
        phases=(phases := ((10, 16, 16), (10, 16, 16), (5, 24, 16))),
    )
    loader, facts = mixed(data, *phases)
    for first, end, expected in (
        (0, 10, (120, 40, 0)),
        (10, 20, (40, 40, 80)),
        (20, 25, (40, 0, 40)),
    ):
        counts = np.bincount(sources_of(loader, first, end), minlength=3)
        np.testing.assert_allclose(counts, expected, atol=1)
    # The second phase goes on where the first one stopped; rows of 24 begin again.
    rows = np.concatenate([loader.rows(step)[1] for step in range(20)])
    esperanto = rows[sources_of(loader, 0, 20) == 1]
    assert len(esperanto) == 80 and len(set(esperanto)) == 80
    assert [fact["share"][2] for fact in facts] == [0.5, 0, 0.5]
    # A batch that grows goes on with its phase's pattern.
    data = DataConfig(mixture=entries(), batch_ramp=(576, 4))
    ramp, _ = mixed(data, (40, 16, 16))
    whole, _ = mixed(DataConfig(mixture=entries()), (40, 16, 16))
    assert len(ramp.phases) > 2
    grown = np.concatenate([ramp.rows(step)[1] for step in range(ramp.steps)])
    plain = np.concatenate([whole.rows(step)[1] for step in range(40)])
    np.testing.assert_array_equal(grown, plain[: len(grown)])


def test_a_source_is_read_no_more_often_than_permitted():
    limit = {"zh": {"max_epochs": 2.5}}
    data = DataConfig(mixture=entries(**limit), mixture_temperature=1e9)
    shapes = (10, 16, 32), (20, 16, 32)
    loader, facts = mixed(data, *shapes)
    counts = np.bincount(sources_of(loader, 0, 30))
    assert counts[2] == pytest.approx(100, abs=2)
    assert abs(counts[0] - counts[1]) <= 2
    assert facts[2]["epochs"] == pytest.approx(2.5, abs=0.05)
    text = "\n".join(mixtures.lines(facts))
    # Esperanto has 120 rows, and 430 of the 960.
    assert "WARNING: the source eo is read" not in text
    often = mixtures.lines([facts[1] | {"epochs": 7.34}])
    assert "the source eo is read 7.3 times" in [*often][-1]
    with pytest.raises(PlmjaxError, match="is too small to be read"):
        mixed(DataConfig(mixture=entries(**weights(1, 1, 1e-9))), *shapes[:1])


def weights(*values) -> dict:
    return {n: {"weight": v} for n, v in zip(SIZES, values, strict=True)}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"mixture": entries(**weights(1, 0, 1))}, "the weight of 'eo' is 0"),
        ({"mixture": entries(**weights(1, -2, 1))}, "the weight of 'eo' is -2"),
        ({"mixture": entries(**weights(1, (1, 1), 1))}, "2 values, but there are 1"),
        ({"mixture": entries(eo={"weight": 1})}, "en, zh have no weight"),
        ({"mixture": entries(eo={"name": "en"})}, "two sources with the name 'en'"),
        ({"mixture": entries(eo={"name": "a b"})}, "a source with the name 'a b'"),
        ({"mixture": entries(eo={"paths": None})}, "'eo' names no text"),
        ({"mixture": entries(eo={"paths": "en"})}, "en and eo are the same text"),
        ({"mixture": entries(eo={"pathz": "x"})}, "data.mixture.pathz"),
        ({"mixture": entries(eo={"max_epochs": 0})}, "data.mixture.max_epochs is 0"),
        ({"mixture": ("a",)}, "each source is a dict"),
        (
            {"mixture": entries(), "source": SourceConfig(paths="a")},
            "data.source and data.mixture both",
        ),
        ({"mixture": entries(), "mixture_temperature": 0}, "it must be above 0"),
        ({"mixture_temperature": 2}, "there is no mixture"),
        (
            {
                "mixture": entries(**weights((1, 0), (1, 0), (1, 0))),
                "phases": ((1, 16, 4), (1, 16, 4)),
            },
            "no source has a weight in phase 2",
        ),
    ],
)
def test_wrong_mixtures_are_refused_at_once(given, words):
    with pytest.raises(PlmjaxError) as info:
        DataConfig(**given)
    assert words in str(info.value) and info.value.code == 2


def test_a_mixture_is_shortened_with_its_phases():
    data = DataConfig(
        mixture=entries(**weights((1, 0, 5), 1, 1)),
        mixture_temperature=(1, 2, 3),
        phases=((90, 16, 4), (1, 24, 4), (9, 32, 4)),
    )
    short = data.shortened(10)
    assert [n for n, *_ in short.phases] == [9, 1]
    assert [source.weight for source in short.sources] == [(1, 5), 1, 1]
    assert short.mixture_temperature == (1, 3)
    saved = json.loads(json.dumps(config_lib.to_dict(data)))
    assert config_lib.build(DataConfig, saved).sources == data.sources


def test_stores_of_two_tokenizers_are_no_mixture():
    class One:
        directory, key = None, "k"

        def __init__(self, tokenizer):
            self.manifest, self.directory = {"tokenizer": tokenizer}, f"x/{tokenizer}"

    with pytest.raises(PlmjaxError, match="'b' was made with another tokenizer"):
        JoinedStore({"a": One("first"), "b": One("second")})


def test_the_vocabulary_sees_the_mixture():
    def made(name, count):
        texts = [f"{name} {n}" for n in range(count)]
        return make_source(SourceConfig(), lambda _: iter(texts), name, {})

    sources = [made("aa", 2000), made("bb", 100)]
    some = [MixedSource(name=n, paths=n, weight=1) for n in "ab"]
    texts = [*sampled_documents(sources, some, None, 1)]
    counts = [sum(text.startswith(name) for text in texts) for name in ("aa", "bb")]
    assert counts[1] == 100 and 60 < counts[0] < 150
    few = sample_documents(sampled_documents(sources, some, None, 1), 400)
    assert 0.3 < sum(text.startswith("aa") for text in few) / len(few) < 0.7
    by_size = [MixedSource(name=n, paths=n) for n in "ab"]
    assert len([*sampled_documents(sources, by_size, None, 1)]) == 2100


@pytest.mark.slow
def test_a_run_on_a_mixture_goes_on_bit_for_bit(tmp_path, on_one_device):
    """It is taken back to what a kill at step 3 of 7 would have left."""
    from plmjax.evaluate.held_out import score_run
    from plmjax.evaluate.model import open_run
    from plmjax.pretrain.run import pretrain
    from plmjax.workdir import RunConfig, Workdir

    for name, count in (("first", 60), ("late", 30)):
        (tmp_path / name).write_text("\n".join(sentences(count, seed=count)) + "\n")
    mixture = tuple(
        {"name": name, "paths": str(tmp_path / name), "weight": weight} | rights
        for name, weight, rights in (
            ("first", (1, 1), {"license": "cc0-1.0", "rights": "Nobody"}),
            ("late", (0, 3), {"url": "https://example.org/b"}),
        )
    )
    overrides = [*OPTIONS, f"data.mixture={mixture!r}"]
    config = config_lib.load(RunConfig, None, overrides)
    scores = pretrain(config, tmp_path / "run")
    assert scores["loss_first"] != scores["loss_late"]
    shutil.copytree(tmp_path / "run", tmp_path / "again")
    for step in range(4, 8):
        shutil.rmtree(tmp_path / f"again/checkpoints/step_{step:08d}")
    pretrain(config, tmp_path / "again")
    assert_same_run(tmp_path / "run", tmp_path / "again")
    facts = json.loads((tmp_path / "run" / "mixture.json").read_text())["sources"]
    assert [fact["share"] for fact in facts] == [[1.0, 0.25], [0.0, 0.75]]
    card = (tmp_path / "run" / "export" / "README.md").read_text()
    assert "| cc0-1.0 | Nobody |" in card and "https://example.org/b" in card
    assert "| 100.00%, 25.00% |" in card and str(tmp_path) not in card
    workdir = Workdir(tmp_path / "run")
    found = score_run(open_run(workdir, "newest"), {}, workdir, batch=4)
    for name in ("loss", "loss_first", "loss_late"):
        assert found[name] == pytest.approx(scores[name], rel=1e-5)
    changed = [*OPTIONS, f"data.mixture={mixture[:1]!r}"]
    with pytest.raises(PlmjaxError, match="data.mixture"):
        pretrain(config_lib.load(RunConfig, None, changed), tmp_path / "run")
    paired = [*overrides, "objective.pairs=sop"]
    with pytest.raises(PlmjaxError, match="objective.pairs needs one source"):
        pretrain(config_lib.load(RunConfig, None, paired), tmp_path / "c")
    assert not (tmp_path / "c").exists()
