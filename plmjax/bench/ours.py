"""plmjax's side of the comparison: the step, the loader and the loop of `pretrain`."""

import dataclasses
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from plmjax.bench import machine
from plmjax.bench.train import run_steps, step_of
from plmjax.bench.worker import Spec
from plmjax.data.loader import Loader, Phase, read_ahead
from plmjax.data.rows import load_plan
from plmjax.data.store import open_store
from plmjax.objectives import Key
from plmjax.run import Run, fresh_state, frozen_arrays
from plmjax.train import sharding
from plmjax.train.config import MeshConfig
from plmjax.train.workdir import Workdir, encoder_config, make_objective

# More steps than any benchmark takes: the loader must only not end.
_ENDLESS = 1 << 40


def open_run(spec: Spec) -> Run:
    """Returns the run whose config, tokenizer and store stand in the case's folder."""
    workdir = Workdir(spec.folder)
    config, tokenizer = workdir.config(), workdir.tokenizer()
    made = workdir.read("run.json")
    assert made is not None
    store = open_store(workdir / "data" / made["store"])
    encoder = encoder_config(config, tokenizer)
    encoder = dataclasses.replace(encoder, dtype=spec.dtype)
    plan = load_plan(store.split("train"), spec.length, True, store.directory)
    phases = [Phase(_ENDLESS, spec.batch, plan)]
    return Run(
        config,
        workdir,
        sharding.make_mesh(MeshConfig()),
        tokenizer,
        store,
        encoder,
        make_objective(config, encoder, tokenizer),
        Loader(store.split("train"), phases, tokenizer, spec.seed),
    )


class Side:
    """Trains the case with plmjax; peer.py calls its methods."""

    def __init__(self, spec: Spec):
        self.run = open_run(spec)
        # The schedule ends where the comparison does, the loader never.
        self.step = step_of(self.run, spec.steps)
        self.evaluation = _make_evaluation(self.run.objective)
        plan = self.run.loader.phases[0].plan
        self.row_tokens = np.add.reduceat(plan.size, plan.first[:-1])
        self.held_out = held_out(spec.folder)
        self.reset()

    def reset(self) -> None:
        """Goes back to the initial weights and the first batch."""
        with jax.set_mesh(self.run.mesh):
            self.state = fresh_state(self.run, print)
            self.frozen = frozen_arrays(self.run)
        self.done = 0
        self.batches = read_ahead(self.run.loader.batch, 0, _ENDLESS)

    def loss(self) -> float:
        """Returns the loss of the first held-out batch, computed in float32."""
        run = self.run
        wide = dataclasses.replace(run.encoder, dtype="float32")
        objective = make_objective(run.config, wide, run.tokenizer)
        return self._mean(_make_evaluation(objective), self.held_out[:1])

    def evaluate(self) -> float:
        """Returns the mean loss of all held-out batches, in the run's precision."""
        return self._mean(self.evaluation, self.held_out)

    def _mean(self, evaluation, batches: list[dict]) -> float:
        sums = [evaluation(self.state.params, self.frozen, b) for b in batches]
        total, count = np.asarray(jax.device_get(sums), np.float64).sum(axis=0)
        return float(total / count)

    def train(self, steps: int) -> dict:
        """Takes steps; returns wall and CPU seconds and the documents' tokens."""
        begin, begin_cpu = time.perf_counter(), time.process_time()
        self.state, _ = run_steps(
            self.step, self.state, self.frozen, self.batches, self.run.mesh, steps
        )
        jax.block_until_ready(self.state)
        seconds, cpu = time.perf_counter() - begin, time.process_time() - begin_cpu
        steps_done = range(self.done, self.done + steps)
        rows = [self.run.loader.rows(step)[1] for step in steps_done]
        self.done += steps
        tokens = int(self.row_tokens[np.concatenate(rows)].sum())
        return {"seconds": seconds, "cpu_seconds": cpu, "tokens": tokens}

    def memory(self) -> int:
        """Returns the peak resident bytes of this process."""
        return machine.peak_rss_bytes()


def _make_evaluation(objective):
    """Returns the jitted (params, frozen, masked batch) -> (sum, count) of the loss."""

    def evaluate(params, frozen, batch):
        key = Key(jnp.uint32(0), jnp.uint32(0))
        return objective.loss(params, frozen, batch, key, False)[1]["loss"]

    return jax.jit(evaluate)


def held_out(folder: str) -> list[dict[str, np.ndarray]]:
    """Returns the masked held-out batches of a case, the same for both sides."""
    with np.load(Path(folder) / "held_out.npz") as saved:
        arrays = dict(saved)
    count = len(arrays["tokens"])
    return [{name: array[i] for name, array in arrays.items()} for i in range(count)]
