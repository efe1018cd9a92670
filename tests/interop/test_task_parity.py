"""Fine-tuned models go to transformers and come back, with the same numbers there."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from interop.cases import draw
from tests_common import campaign

from plmjax import PlmjaxError, tree
from plmjax.interop import export_folder, read_folder
from plmjax.interop.names import FAMILIES
from plmjax.interop.task_names import CLASSES, MODULES
from plmjax.interop.weights import from_tensors, model_entries
from plmjax.models.global_tokens import USUAL
from plmjax.models.task_heads import init_head, task_logits
from plmjax.objectives import Key, Supervised, SupervisedConfig
from plmjax.tasks.task import Task
from plmjax.train import sharding
from plmjax.train.config import MeshConfig, OptimizerConfig, ScheduleConfig
from plmjax.train.optimizer import make_optimizer
from plmjax.train.schedule import make_schedule
from plmjax.train.step import init_state, make_step

LABELS = ("no", "yes", "may be")
TASKS = {
    "sequence": Task("classes", LABELS),
    "tags": Task("tags", ("O", "B-X", "I-X", "B-Y")),
    "answers": Task("answers"),
    "choices": Task("choices"),
}
KEY = Key(jnp.uint32(1), jnp.uint32(2))


@functools.cache
def drawn(config, task):
    """Random parameters of an encoder and a head, biases too."""
    shapes = jax.eval_shape(
        lambda key: init_head(config, task.head, task.outputs, key), jax.random.key(0)
    )
    random = np.random.default_rng(1)
    head = jax.tree.map(
        lambda x: random.normal(0, 0.3, x.shape).astype(np.float32), shapes
    )
    return draw(config, ()) | {task.head: head}


@pytest.fixture
def exported(tiny, tmp_path):
    """Makes a tiny fine-tuned model and exports it: (config, params, folder)."""

    def make(family, task, **changes):
        if family == "longformer":  # as transformers has it without a mask
            rule = USUAL.get(task.head, "none")
            ids = (2,) if rule in ("question", "second") else ()
            changes |= {"global_tokens": rule, "global_ids": ids, "global_limit": 9}
        model = tiny(family, heads=(), **changes)
        params = drawn(model.config, task)
        folder = tmp_path / "model"
        export_folder(
            folder, model.config, params, model.tokenizer, "# Card\n", task=task
        )
        return model.config, params, folder

    return make


NAMES = {"deberta-v2": "deberta"}


def case_of(family):
    return NAMES.get(family, family)


def assert_same(found, wanted):
    assert not tree.differences(wanted, found)
    for name, array in tree.flatten(wanted).items():
        np.testing.assert_array_equal(tree.flatten(found)[name], array, err_msg=name)


HEADS_OF = [(family, head) for family in MODULES for head in MODULES[family]]


@pytest.mark.parametrize("family, head", HEADS_OF)
def test_a_fine_tuned_model_comes_back(exported, family, head):
    task = dataclasses.replace(TASKS[head], dropout=0.25)
    config, params, folder = exported(case_of(family), task)
    body = json.loads((folder / "config.json").read_text())
    assert body["architectures"] == [FAMILIES[family].classes[head,]]
    assert body["architectures"][0].endswith(CLASSES[head])
    imported = read_folder(folder)
    assert_same(imported.params, params)
    assert imported.config == config
    # Some families have no key for the dropout of some heads.
    unwritten = head == "answers" and family not in ("distilbert", "modernbert")
    unwritten |= family in ("eurobert", "longformer")
    unwritten |= (family, head) == ("distilbert", "tags")
    assert imported.task == (
        dataclasses.replace(task, dropout=None) if unwritten else task
    )


@pytest.mark.parametrize(
    "task, problem",
    [
        (Task("multilabel", ("only",)), "multi_label_classification"),
        (Task("multilabel", LABELS), "multi_label_classification"),
        (Task("regression"), "regression"),
        (Task("classes", LABELS), "single_label_classification"),
    ],
)
def test_the_problem_type_says_the_kind(exported, task, problem):
    _, _, folder = exported("bert", task)
    body = json.loads((folder / "config.json").read_text())
    assert body["problem_type"] == problem
    assert len(body["id2label"]) == len(body["label2id"]) == task.outputs
    assert read_folder(folder).task == task


def change(folder, **values):
    path = folder / "config.json"
    body = json.loads(path.read_text()) | values
    body = {key: value for key, value in body.items() if value is not None}
    path.write_text(json.dumps(body))


def test_what_a_file_leaves_out_is_as_transformers_takes_it(exported):
    _, _, folder = exported("bert", TASKS["sequence"])
    change(folder, id2label=None, label2id=None, problem_type=None)
    task = read_folder(folder).task
    assert task == Task("classes", ("LABEL_0", "LABEL_1", "LABEL_2"))
    # Of which class it is, only the name says: without it, the head is left out.
    change(folder, architectures=None)
    imported = read_folder(folder)
    assert imported.task is None and imported.params.keys() == {"encoder"}
    assert any("task head (classifier.bias" in note for note in imported.notes)


@pytest.mark.parametrize(
    "values, message",
    [
        ({"id2label": {"0": "a", "1": "b"}}, "does not name the 3 outputs"),
        ({"id2label": {"0": "a", "1": "b", "2": 3}}, "does not name the 3 outputs"),
        ({"id2label": {"0": "a", "1": "b", "2": "a"}}, "not distinct"),
        ({"problem_type": "regression"}, "'regression' with 3 outputs"),
        ({"problem_type": "magic"}, "'magic' with 3 outputs"),
        ({"classifier_dropout": "much"}, "dropout is 'much'"),
        ({"architectures": ["BertForMultipleChoice"]}, "has 3 outputs, not 1"),
        ({"architectures": ["BertForQuestionAnswering"]}, None),
    ],
)
def test_a_folder_that_contradicts_itself(exported, values, message):
    _, _, folder = exported("bert", TASKS["sequence"])
    change(folder, **values)
    if message is None:
        # There is no head of that class in the file.
        assert read_folder(folder).task is None
        return
    with pytest.raises(PlmjaxError, match=message):
        read_folder(folder)


def test_another_pooler_is_refused(exported):
    _, _, folder = exported("deberta", TASKS["sequence"])
    change(folder, pooler_hidden_act="tanh")
    with pytest.raises(PlmjaxError, match="pooler_hidden_act is 'tanh'"):
        read_folder(folder)


def test_a_head_is_exported_with_its_own_task(tiny, tmp_path):
    model = tiny("bert", heads=())
    params = drawn(model.config, TASKS["sequence"])
    for task in (None, TASKS["tags"]):
        with pytest.raises(PlmjaxError, match="together with its own task"):
            export_folder(
                tmp_path / "m", model.config, params, model.tokenizer, "", task=task
            )
    more = dataclasses.replace(TASKS["sequence"], labels=(*LABELS, "d"))
    with pytest.raises(PlmjaxError, match=r"\[10, 3\], not float32\[10, 4\]"):
        export_folder(
            tmp_path / "m", model.config, params, model.tokenizer, "", task=more
        )


# Live, with PyTorch.


def make_batch(config, task, rows=4, seed=0):
    """Padded rows with labels, as plmjax has them."""
    random = np.random.default_rng(seed)
    length = 9
    shape = (rows, 3, length) if task.head == "choices" else (rows, length)
    # Of answers, transformers counts padding among what can be chosen.
    least = length if task.kind == "answers" else 6 if config.global_ids else 3
    lengths = random.integers(least, length + 1, shape[:-1])
    mask = np.arange(length) < lengths[..., None]
    tokens = random.integers(5, config.vocab_size, shape)
    if config.global_ids:  # pairs, by their separators
        tokens[..., 2:4] = config.global_ids
        np.put_along_axis(tokens, lengths[..., None] - 1, config.global_ids[0], -1)
    kinds = random.integers(0, max(config.token_types, 1), shape)
    outputs = len(task.labels) or 3
    labels = {
        "classes": random.integers(0, outputs, rows),
        "multilabel": random.integers(0, 2, (rows, outputs)).astype(np.float32),
        "regression": random.normal(size=rows).astype(np.float32),
        "tags": np.where(mask & (tokens % 3 > 0), tokens % outputs, -1),
        "answers": random.integers(0, 3, (rows, 2)),
        "choices": random.integers(0, 3, rows),
    }[task.kind]
    batch = {
        "tokens": np.where(mask, tokens, 1),
        "segments": mask,
        "positions": np.broadcast_to(np.arange(length), shape),
        "types": np.where(mask, kinds, 0),
        "row": np.arange(rows),
    }
    batch = {name: array.astype(np.int32) for name, array in batch.items()}
    labels = labels if labels.dtype == np.float32 else labels.astype(np.int32)
    return batch | {"weight": np.ones(rows, np.float32), "label": labels}


def ask(model, batch, task):
    """What the class of transformers returns for a batch of ours."""
    import torch

    long = {
        name: torch.from_numpy(batch[name]).long()
        for name in ("tokens", "segments", "types")
    }
    given = {"input_ids": long["tokens"], "attention_mask": long["segments"]}
    if getattr(model.config, "type_vocab_size", 0):
        given["token_type_ids"] = long["types"]
    labels = torch.from_numpy(batch["label"])
    if task.head == "answers":
        starts, ends = labels.long().T
        given |= {"start_positions": starts, "end_positions": ends}
    elif labels.dtype == torch.float32:
        given["labels"] = labels
    else:
        given["labels"] = torch.where(labels < 0, -100, labels).long()
    return model(**given)


def logits_of(result, task):
    if task.head == "answers":
        both = (result.start_logits, result.end_logits)
        return np.stack([logits.detach().numpy() for logits in both], -1)
    return result.logits.detach().numpy()


def load(folder, head):
    import transformers

    name = "AutoModel" + CLASSES[head]
    model, info = getattr(transformers, name).from_pretrained(
        folder, output_loading_info=True, local_files_only=True
    )
    assert not any(info.values()), info
    return model.eval()


LIVE = [(family, TASKS[head]) for family, head in HEADS_OF]
LIVE += [("bert", Task("multilabel", LABELS)), ("bert", Task("regression"))]
# Every family by one task in turn; the last two go the way of classes.
FEW = [
    (family, TASKS[[*MODULES[family]][n % len(MODULES[family])]])
    for n, family in enumerate(MODULES)
]


@pytest.mark.peer
@pytest.mark.parametrize(
    "family, task",
    campaign(LIVE, *FEW),
    ids=[f"{family}-{task.kind}" for family, task in LIVE],
)
def test_transformers_computes_the_same(exported, tmp_path, family, task):
    pytest.importorskip("torch")
    config, params, folder = exported(case_of(family), task)
    theirs = load(folder, task.head)
    assert type(theirs).__name__ == FAMILIES[family].classes[task.head,]
    if task.labels:
        assert theirs.config.id2label == dict(enumerate(task.labels))
    batch = make_batch(config, task)
    result = ask(theirs, batch, task)
    result.loss.backward()

    objective = Supervised(SupervisedConfig(), config, task)
    batch = objective.corrupt({}, batch, KEY, jnp.float32(0))

    @jax.jit
    def ours(params):
        def loss(params):
            value, _ = objective.loss(params, {}, batch, KEY, False)
            return value, task_logits(config, task, params, batch, None)

        return jax.value_and_grad(loss, has_aux=True)(params)

    (value, logits), grads = ours(params)
    named = dict(theirs.named_parameters())

    def gradient(name):
        parameter = named[name]  # without global tokens, Longformer has unused ones
        used = parameter.grad is not None
        return (parameter.grad if used else 0 * parameter.detach()).numpy()

    wanted = from_tensors(model_entries(config, (task.head,)), (task.head,), gradient)
    differences = np.abs(logits - logits_of(result, task))
    if task.kind in ("tags", "answers"):
        # Padding attends to padding in plmjax, which nothing depends on.
        differences = differences[batch["segments"] > 0]
    apart = {
        "logits": differences.max(),
        "loss": abs(float(value) - result.loss.item()),
        "gradients": max(
            np.abs(tree.flatten(grads)[name] - grad).max()
            for name, grad in tree.flatten(wanted).items()
        ),
    }
    print(family, task.kind, apart)
    assert apart["logits"] < 1e-5 and apart["loss"] < 3e-6
    assert apart["gradients"] < 1e-6

    # And back, from a folder that transformers wrote.
    theirs.save_pretrained(tmp_path / "theirs")
    read_folder(folder).tokenizer.save(tmp_path / "theirs")
    imported = read_folder(tmp_path / "theirs")
    assert_same(imported.params, params)
    assert dataclasses.replace(imported.task, dropout=None) == task


@pytest.mark.peer
@pytest.mark.timeout(240)
def test_an_epoch_of_adamw_has_the_same_losses(exported):
    torch = pytest.importorskip("torch")
    task = dataclasses.replace(TASKS["sequence"], dropout=0.0)
    config, params, folder = exported("bert", task, dropout=0.0, attention_dropout=0.0)
    theirs = load(folder, task.head).train()
    batches = [make_batch(config, task, rows=8, seed=seed) for seed in range(8)]
    rate = 1e-2

    plain = [
        p for n, p in theirs.named_parameters() if n.endswith("bias") or "Norm" in n
    ]
    decayed = [p for p in theirs.parameters() if all(p is not other for other in plain)]
    groups = [
        {"params": decayed, "weight_decay": 0.1},
        {"params": plain, "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.999), eps=1e-6)
    wanted = []
    for batch in batches:
        adamw.zero_grad()
        loss = ask(theirs, batch, task).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        adamw.step()
        wanted.append(loss.item())

    objective = Supervised(SupervisedConfig(), config, task)
    optimizer = make_optimizer(
        OptimizerConfig(
            learning_rate=rate, b1=0.9, b2=0.999, eps=1e-6, weight_decay=0.1
        )
    )
    schedule = make_schedule(ScheduleConfig("constant", warmup_percent=0), rate, 8)
    mesh = sharding.make_mesh(MeshConfig(1), jax.devices()[:1])
    found = []
    with jax.set_mesh(mesh):
        state = jax.jit(
            lambda batch: init_state(objective, optimizer, 0, batch, False)
        )(batches[0])
        state = jax.device_put(
            state._replace(params=params), sharding.shardings(mesh, state)
        )
        step = make_step(objective, optimizer, schedule, mesh, seed=0, steps=8)
        for batch in batches:
            state, metrics = step(state, {}, sharding.put_rows(mesh, batch))
            found.append(float(metrics["objective"][0]))
    print(wanted, found)
    assert wanted[-1] != pytest.approx(wanted[0], rel=1e-2)
    np.testing.assert_allclose(found, wanted, atol=1e-4)
