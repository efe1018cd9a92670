"""The first state of a run, and the inputs of its loss beside the parameters.

Start weights come from a run or folder, from a teacher, or are random.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from plmjax import processes, tree
from plmjax.console import ignore_line
from plmjax.evaluate.model import Model
from plmjax.objectives import DistillConfig
from plmjax.pretrain import students, teachers
from plmjax.pretrain.build import PretrainSetup
from plmjax.pretrain.weights import start_weights
from plmjax.train import sharding
from plmjax.train.job import initialise, step_for, with_params
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
    if setup.teacher is not None:
        student = setup.objective.models["model"].extract(shapes.params)
        ours, theirs = tree.count(student), tree.count(setup.teacher.params)
        if ours > theirs:
            log(
                f"WARNING: the student has {ours:,} parameters, more than the "
                f"{theirs:,} of its teacher."
            )
    shardings = sharding.shardings(setup.mesh, shapes, setup.config.mesh.zero1)
    state = jax.jit(make, out_shardings=shardings)(batch)
    if setup.config.train.init_from is not None:
        params = start_weights(
            setup.config,
            setup.workdir,
            setup.objective,
            setup.tokenizer,
            fresh=processes.gather_to_host(state.params),
            log=ignore_line,  # described by `build`
        )
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


def frozen_arrays(setup: PretrainSetup) -> dict:
    """Returns the loss's tables and teacher arrays, on the devices of the mesh."""
    frozen = _frozen(setup)
    return jax.device_put(frozen, sharding.shardings(setup.mesh, frozen))


def frozen_shapes(setup: PretrainSetup) -> dict:
    """Returns the shapes and shardings of `frozen_arrays`."""
    frozen = _frozen(setup)
    shardings = sharding.shardings(setup.mesh, frozen)
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        frozen,
        shardings,
    )


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
