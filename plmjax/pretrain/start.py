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
from plmjax.pretrain.build import PretrainSetup
from plmjax.train import sharding
from plmjax.train.job import (
    initialise,
    step_for,
    with_params,
)
from plmjax.train.step import State
from plmjax.workdir import RunConfig, Workdir, encoder_config


def step_of(setup: PretrainSetup, steps: int) -> functools.partial:
    """Returns the jitted step of a run whose schedule has `steps` steps."""
    config = setup.config
    return step_for(setup.objective, config.train, setup.mesh, config.mesh.zero1, steps)


def fresh_state(setup: PretrainSetup, log: Callable[[str], Any]) -> State:
    """Returns the state before the first step on its devices, with start weights.

    Raises:
      PlmjaxError: the start weights are of another model.
    """
    objective = setup.config.objective
    make = initialise(setup.objective, setup.config.train)
    # Only the shapes matter, but all processes must have the same values.
    batch = jax.tree.map(lambda x: np.zeros_like(x[:1]), setup.loader.batch(0))
    shapes = jax.eval_shape(make, batch)
    shardings = sharding.shardings(setup.mesh, shapes, setup.config.mesh.zero1)
    state = jax.jit(make, out_shardings=shardings)(batch)
    if setup.config.train.init_from is not None:
        params = start_weights(setup, state.params, log)
    elif isinstance(objective, DistillConfig) and objective.start == "teacher":
        assert setup.teacher is not None
        frozen = _frozen(setup)
        fresh = processes.gather_to_host(state.params)
        params = students.start(
            objective, setup.encoder, fresh, setup.teacher.encoder, frozen
        )
        log(f"Start weights: layers of the teacher {setup.teacher.name}.")
    else:
        return state
    return with_params(state, params, shardings)


def start_weights(setup: PretrainSetup, fresh: dict, log: Callable[[str], Any]) -> dict:
    """Returns the parameters of train.init_from where they fit, else those of `fresh`.

    A run of several models (ELECTRA) reads each from the model of the same name; a
    single model starts every model of its size (two-stage training).

    Raises:
      PlmjaxError: another tokenizer, or no model has the size of its start weights.
    """
    where = f"train.init_from={setup.config.train.init_from}"
    models = open_models(str(setup.workdir.resolve(str(setup.config.train.init_from))))
    params, problems, inserted = dict(processes.gather_to_host(fresh)), [], {}
    for name, view in setup.objective.models.items():
        # Compared before insertion, because models may share arrays.
        model = models.get(name) or next(iter(models.values()))
        if model.tokenizer.vocabulary_digest != setup.tokenizer.vocabulary_digest:
            raise PlmjaxError(
                f"the weights of {where} have another tokenizer than this run.",
                hint="Set --config.tokenizer.path to that folder.",
                code=Exit.MODEL,
            )
        current = view.extract(params)
        if differing := tree.differences(current["encoder"], model.params["encoder"]):
            problems.append(f"{name}: {differing[0]}")
            continue
        fitting = _fitting(model, current)
        new = [head for head in view.heads if head not in fitting]
        unused = [head for head in model.params if head not in fitting]
        log(
            f"Start weights of the {name}: {where}"
            + (f"; new: {', '.join(new)}" if new else "")
            + (f"; left out: {', '.join(unused)}" if unused else "")
            + "."
        )
        inserted[name] = current | fitting
        params = view.insert(params, inserted[name])
    if len(problems) == len(setup.objective.models):
        raise PlmjaxError(
            f"the weights of {where} do not fit this model: {'; '.join(problems)}.",
            hint="Do not set the sizes of the model block; the import sets them.",
            code=Exit.MODEL,
        )
    for problem in problems:
        log(f"WARNING: {where} has another size, so new weights are used: {problem}.")
    for name, wanted in inserted.items():
        _check_shared(wanted, setup.objective.models[name].extract(params), where)
    return params


def _check_shared(wanted: dict, params: dict, where: str) -> None:
    """Raises PlmjaxError if another model has overwritten this one's start weights."""
    ours = tree.flatten(params)
    for name, leaf in tree.flatten(wanted).items():
        # A leaf stored as a difference loses its last digit.
        if not np.allclose(leaf, ours[name], rtol=1e-5, atol=1e-6):
            raise PlmjaxError(
                f"generator and discriminator share {name}, but it differs between "
                f"their weights of {where}.",
                hint="Set --config.objective.tie=none, or disentangled.",
                code=Exit.MODEL,
            )


def _fitting(model: Model, target: dict) -> dict:
    """Returns a model's encoder, and its heads that have the shapes of `target`."""
    return {
        name: jax.device_get(params)
        for name, params in model.params.items()
        if name in target and not tree.differences(target[name], params)
    }


def frozen_arrays(setup: PretrainSetup) -> dict:
    """Returns the loss's tables and teacher arrays, on the devices of the mesh."""
    frozen = _frozen(setup)
    return jax.device_put(frozen, sharding.shardings(setup.mesh, frozen))


def _frozen(setup: PretrainSetup) -> dict:
    tables, teacher = setup.objective.tables(), setup.teacher
    if teacher is None:
        return tables
    return tables | teachers.frozen(
        setup.config, setup.encoder, setup.tokenizer, teacher
    )


def compare_with_teacher(
    setup: PretrainSetup, params, batches: Iterator[dict]
) -> dict[str, float]:
    """Returns sizes, held-out scores and speeds of student and teacher.

    Speeds are those of the devices of the mesh that is set.
    """
    assert setup.teacher is not None
    view, frozen = setup.objective.models["model"], _frozen(setup)
    name = setup.workdir.path.name
    student = Model(view.encoder, view.extract(params), setup.tokenizer, name)
    pieces = frozen["pieces"] if "pieces" in frozen else None
    return students.compare(setup.teacher, student, batches, setup.objective, pieces)


def teacher_arrays(config: RunConfig, workdir: Workdir) -> dict:
    """Returns the teacher's inputs of the loss, for the evaluation of a trained run."""
    teacher = teachers.load(config, workdir)
    if teacher is None:
        return {}
    tokenizer = workdir.tokenizer()
    encoder = encoder_config(config, tokenizer)
    return teachers.frozen(config, encoder, tokenizer, teacher)
