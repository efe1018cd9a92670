"""The first state of a run, and the inputs of its loss beside the parameters.

Start weights come from a run or folder, from a teacher, or are random.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from plmjax import Exit, PlmjaxError, processes, tree
from plmjax.evaluate.model import Model, open_models
from plmjax.objectives import DistillConfig
from plmjax.pretrain import students, teachers
from plmjax.pretrain.build import Run
from plmjax.train import sharding
from plmjax.train.job import (
    initialise,
    step_for,
    with_params,
)
from plmjax.train.step import State
from plmjax.workdir import RunConfig, Workdir, encoder_config


def step_of(run: Run, steps: int) -> functools.partial:
    """Returns the jitted step of a run whose schedule has `steps` steps."""
    config = run.config
    return step_for(run.objective, config.train, run.mesh, config.mesh.zero1, steps)


def fresh_state(run: Run, log: Callable[[str], Any]) -> State:
    """Returns the state before the first step on its devices, with start weights.

    Raises:
      PlmjaxError: the start weights are of another model.
    """
    objective = run.config.objective
    make = initialise(run.objective, run.config.train)
    # Only the shapes matter, but all processes must have the same values.
    batch = jax.tree.map(lambda x: np.zeros_like(x[:1]), run.loader.batch(0))
    shapes = jax.eval_shape(make, batch)
    places = sharding.shardings(run.mesh, shapes, run.config.mesh.zero1)
    state = jax.jit(make, out_shardings=places)(batch)
    if run.config.train.init_from is not None:
        params = start_weights(run, state.params, log)
    elif isinstance(objective, DistillConfig) and objective.start == "teacher":
        assert run.teacher is not None
        frozen = _frozen(run)
        fresh = processes.gather_to_host(state.params)
        params = students.start(
            objective, run.encoder, fresh, run.teacher.encoder, frozen
        )
        log(f"Start weights: layers of the teacher {run.teacher.name}.")
    else:
        return state
    return with_params(state, params, places)


def start_weights(run: Run, fresh: dict, log: Callable[[str], Any]) -> dict:
    """Returns parameters taken from train.init_from where they fit, the rest fresh.

    A model of several parts (ELECTRA) takes each from the part of the same name; a
    single model is the start of every part of its size (two-stage training).

    Raises:
      PlmjaxError: another tokenizer, or no part has the size of its model there.
    """
    where = f"train.init_from={run.config.train.init_from}"
    found = open_models(str(run.workdir.resolve(str(run.config.train.init_from))))
    params, problems, placed = dict(processes.gather_to_host(fresh)), [], {}
    for name, part in run.objective.parts.items():
        # Compared before insertion, because parts may share arrays.
        model = found.get(name) or next(iter(found.values()))
        if model.tokenizer.vocabulary_digest != run.tokenizer.vocabulary_digest:
            raise PlmjaxError(
                f"the weights of {where} belong to another tokenizer than this run's.",
                hint="Set --config.tokenizer.path to that folder.",
                code=Exit.MODEL,
            )
        own = part.take(params)
        if differing := tree.differences(own["encoder"], model.params["encoder"]):
            problems.append(f"{name}: {differing[0]}")
            continue
        taken = _taken(model, own)
        new = [head for head in part.heads if head not in taken]
        unused = [head for head in model.params if head not in taken]
        log(
            f"Start weights of the {name}: {where}"
            + (f"; new: {', '.join(new)}" if new else "")
            + (f"; left out: {', '.join(unused)}" if unused else "")
            + "."
        )
        placed[name] = own | taken
        params = part.place(params, placed[name])
    if len(problems) == len(run.objective.parts):
        raise PlmjaxError(
            f"the weights of {where} are of another model: {'; '.join(problems)}.",
            hint="Leave the model block's sizes to the import.",
            code=Exit.MODEL,
        )
    for problem in problems:
        log(f"WARNING: another size in {where}, so it starts anew: {problem}.")
    for name, wanted in placed.items():
        _check_shared(wanted, run.objective.parts[name].take(params), where)
    return params


def _check_shared(wanted: dict, found: dict, where: str) -> None:
    """Raises PlmjaxError if another part has overwritten this one's start weights."""
    ours = tree.flatten(found)
    for name, leaf in tree.flatten(wanted).items():
        # A leaf stored as a difference loses its last digit.
        if not np.allclose(leaf, ours[name], rtol=1e-5, atol=1e-6):
            raise PlmjaxError(
                f"generator and discriminator share {name}, but the weights of "
                f"{where} have one for each.",
                hint="Set --config.objective.tie=none, or disentangled.",
                code=Exit.MODEL,
            )


def _taken(model: Model, own: dict) -> dict:
    """Returns a model's encoder, and its heads with the shapes of those in `own`."""
    return {
        name: jax.device_get(params)
        for name, params in model.params.items()
        if name in own and not tree.differences(own[name], params)
    }


def frozen_arrays(run: Run) -> dict:
    """Returns the loss's tables and teacher arrays, on the devices of the mesh."""
    frozen = _frozen(run)
    return jax.device_put(frozen, sharding.shardings(run.mesh, frozen))


def _frozen(run: Run) -> dict:
    tables, teacher = run.objective.tables(), run.teacher
    if teacher is None:
        return tables
    return tables | teachers.frozen(run.config, run.encoder, run.tokenizer, teacher)


def beside_teacher(run: Run, params, batches: Iterator[dict]) -> dict[str, float]:
    """Returns sizes, held-out scores and speeds of student and teacher.

    Speeds are those of the devices of the mesh that is set.
    """
    assert run.teacher is not None
    part, frozen = run.objective.parts["model"], _frozen(run)
    own = part.take(params)
    student = Model(part.encoder, own, run.tokenizer, run.workdir.path.name)
    pieces = frozen["pieces"] if "pieces" in frozen else None
    return students.compare(run.teacher, student, batches, run.objective, pieces)


def teacher_arrays(config: RunConfig, workdir: Workdir) -> dict:
    """Returns the teacher's inputs of the loss, for the evaluation of a trained run."""
    teacher = teachers.load(config, workdir)
    if teacher is None:
        return {}
    tokenizer = workdir.tokenizer()
    encoder = encoder_config(config, tokenizer)
    return teachers.frozen(config, encoder, tokenizer, teacher)
