"""Fine-tuning by a teacher's scores beside the labels (Hinton et al. 2015,
arXiv:1503.02531; the last stage of TinyBERT, Jiao et al. 2019, arXiv:1909.10351).

The teacher reads each training row once, before training: a step costs no more.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from plmjax import Exit, PlmjaxError, tree
from plmjax.data.features import TEACHER, Features
from plmjax.evaluate.model import Model, open_models
from plmjax.evaluate.predictions import make_predict, score_rows
from plmjax.finetune.build import FinetuneSetup, digest_of, with_arrays
from plmjax.interop.folder import check_is_folder
from plmjax.models.global_tokens import with_room
from plmjax.tasks.features import make_features
from plmjax.tasks.task import Task
from plmjax.train import sharding


def with_teacher(
    setup: FinetuneSetup, log: Callable[[str], Any], reads: bool = True
) -> FinetuneSetup:
    """Returns a setup whose training batches hold the teacher's scores of their rows.

    Without objective.teacher it is unchanged. With `reads` False the scores are all 0,
    which is enough to check shapes.

    Raises:
      PlmjaxError: the teacher is of another task, or its rows are not the student's.
    """
    path = setup.config.objective.teacher
    if path is None:
        return setup
    check_is_folder(Path(path), path, f"objective.teacher={path}")
    teacher = next(iter(open_models(path).values()))
    features = _rows(setup, teacher, path)
    ours, theirs = tree.count(setup.params), tree.count(teacher.params)
    if ours > theirs and setup.config.lora.rank == 0:
        log(
            f"WARNING: the student has {ours:,} parameters, more than the {theirs:,} "
            "of its teacher."
        )
    tokens, segments = (features.arrays[name] for name in ("tokens", "segments"))
    encoder = with_room(teacher.encoder, tokens, segments)
    assert teacher.task is not None
    predict = make_predict(encoder, teacher.task, setup.mesh)
    params = jax.device_put(teacher.params, sharding.replicated(setup.mesh))
    first = {name: x[:1] for name, x in features.arrays.items()}
    one = jax.eval_shape(functools.partial(predict, params, {}), first)
    scores = np.zeros((features.rows, *one.shape[1:]), np.float32)
    if reads:
        train = setup.config.train
        batch = train.batch // train.accumulation
        read = functools.partial(predict, params, {})
        for rows, some in score_rows(
            read, setup.mesh, features, batch, setup.data.config
        ):
            if scores.ndim == 3:  # scores of tokens, of a row cut to its length
                scores[rows, : some.shape[1]] = some
            else:
                scores[rows] = some
        log(f"Teacher: {path} has read {features.rows:,} training rows, once.")
    leaves = [np.asarray(x).tobytes() for x in tree.flatten(teacher.params).values()]
    return with_arrays(setup, {TEACHER: scores}, teacher=digest_of(leaves))


def _rows(setup: FinetuneSetup, teacher: Model, path: str) -> Features:
    """Returns the training rows as the teacher's tokenizer writes them."""
    task, config, ours = setup.task, setup.data.config, setup.features["train"]
    theirs, tokenizer, most = (
        teacher.task,
        teacher.tokenizer,
        teacher.encoder.max_length,
    )

    def check(right: bool, what: str, hint: str) -> None:
        if not right:
            message = f"objective.teacher={path} {what}."
            raise PlmjaxError(message, hint=hint, code=Exit.MODEL)

    def named(some: Task | None) -> str:
        return f"{some.kind} ({', '.join(some.labels)})" if some else "no task"

    check(
        theirs is not None and (theirs.kind, theirs.labels) == (task.kind, task.labels),
        f"has learnt {named(theirs)}, and the student learns {named(task)}",
        "Fine-tune the teacher on the same labels first.",
    )
    check(
        config.rows != "packed" and not setup.added.examples,
        "scores rows of one example, but task.rows='packed' or pseudo-labelled "
        "examples make others",
        "Set --config.task.rows=single, without pseudo-labels.",
    )
    check(
        config.length <= most,
        f"has positions for {most} tokens, and task.length={config.length}",
        f"Set --config.task.length={most}.",
    )
    if tokenizer.digest == setup.model.tokenizer.digest:
        return ours
    features = make_features(config, setup.data.train, tokenizer, setup.data.labels)
    hint = "Start the student from a model with the teacher's tokenizer"
    check(
        ours.word is None and ours.spans is None,
        f"has another tokenizer, and a task of {task.kind} has scores for each token",
        f"{hint}.",
    )
    check(
        np.array_equal(features.example, ours.example),
        f"has another tokenizer, and makes {features.rows:,} rows where the student "
        f"has {ours.rows:,}",
        f"{hint}, or lengthen task.length.",
    )
    return features
