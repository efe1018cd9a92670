"""plmjax's side of the comparison: the step, loader and loop of `pretrain`."""

import dataclasses
import functools
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from plmjax import machine, tree
from plmjax.bench.train import run_steps
from plmjax.data.loader import Loader, Phase, read_ahead
from plmjax.data.rows import load_plan
from plmjax.evaluate.model import Model
from plmjax.models import Platform, heads
from plmjax.objectives import DistillConfig, ElectraConfig, Key, Objective
from plmjax.objectives.electra import VARIANTS, substituted
from plmjax.objectives.masked import masked_logits, token_loss
from plmjax.pretrain.build import PretrainSetup
from plmjax.pretrain.start import fresh_state, frozen_arrays, step_of
from plmjax.pretrain.teachers import open_teacher
from plmjax.train import sharding
from plmjax.train.config import MeshConfig
from plmjax.workdir import (
    RunConfig,
    Workdir,
    encoder_config,
    make_objective,
)
from sides import Spec

# More steps than any benchmark takes, so that the loader does not end.
_ENDLESS = 1 << 40


def open_run(spec: Spec) -> PretrainSetup:
    """Returns the run of the config, tokenizer and store in the case's folder."""
    workdir = Workdir(spec.folder)
    config, tokenizer = workdir.config(), workdir.tokenizer()
    store = workdir.store()
    encoder = encoder_config(config, tokenizer)
    encoder = dataclasses.replace(encoder, dtype=spec.dtype)
    plan = load_plan(store.split("train"), spec.length, True, store.directory)
    phases = [Phase(_ENDLESS, spec.batch, plan)]
    teacher = _teacher(config, spec)
    theirs = None if teacher is None else teacher.encoder
    mesh = sharding.make_mesh(MeshConfig())
    platform = Platform.of(mesh.devices.flat)
    return PretrainSetup(
        config,
        workdir,
        mesh,
        tokenizer,
        store,
        encoder,
        make_objective(config, encoder, tokenizer, theirs, platform),
        Loader(store.split("train"), phases, tokenizer, spec.seed),
        teacher,
    )


def _teacher(config: RunConfig, spec: Spec) -> Model | None:
    """Returns the case's teacher, in the dtype of the student; None without one."""
    if not isinstance(config.objective, DistillConfig):
        return None
    assert config.objective.teacher is not None
    model = open_teacher(config.objective, Path(config.objective.teacher))
    encoder = dataclasses.replace(model.encoder, dtype=spec.dtype)
    return dataclasses.replace(model, encoder=encoder)


class Side:
    """Trains the case with plmjax; peer.py calls its methods."""

    def __init__(self, spec: Spec):
        self.spec, self.run = spec, open_run(spec)
        # The schedule ends with the comparison, the loader never does.
        self.step = step_of(self.run, spec.steps)
        self.sums = jax.jit(functools.partial(_sums, self.run.objective))
        plan = self.run.loader.phases[0].plan
        self.row_tokens = np.add.reduceat(plan.size, plan.first[:-1])
        self.held_out = held_out(spec.folder)
        self.reset()

    def reset(self) -> None:
        """Restores the initial weights and the first batch."""
        with jax.set_mesh(self.run.mesh):
            self.state = fresh_state(self.run, print)
            self.frozen = frozen_arrays(self.run)
        self.done = 0
        self.batches = read_ahead(self.run.loader.batch, 0, _ENDLESS)

    def loss(self) -> dict[str, float]:
        """Returns the losses of the first held-out batch, computed in float32."""
        # By default, a GPU rounds float32 factors to ten bits of mantissa.
        with jax.default_matmul_precision("highest"):
            return self._losses()

    def _losses(self) -> dict[str, float]:
        wide = open_run(dataclasses.replace(self.spec, dtype="float32"))
        params, batch = self.state.params, self.held_out[0]
        if isinstance(wide.config.objective, ElectraConfig):
            losses = jax.jit(functools.partial(_electra_losses, wide.objective))(
                params, self.frozen, batch
            )
            return {name: float(value) for name, value in losses.items()}
        sums = jax.jit(functools.partial(_sums, wide.objective))(
            params, self.frozen, batch
        )
        means = {name: float(total / count) for name, (total, count) in sums.items()}
        scores = wide.objective.scores(means)
        distilled = isinstance(wide.config.objective, DistillConfig)
        kept = ("soft_loss", "mlm_loss", "cosine_loss") if distilled else ("loss",)
        return {name: scores[name] for name in kept}

    def parameters(self) -> dict[str, float]:
        """Returns the number of trained parameters."""
        return {"parameters": tree.count(self.state.params)}

    def evaluate(self) -> float:
        """Returns the mean loss of all held-out batches, in the run's precision."""
        sums = [
            self.sums(self.state.params, self.frozen, batch)["loss"]
            for batch in self.held_out
        ]
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
        """Returns the peak memory in bytes, of the GPU or else of this process."""
        held = jax.devices()[0].memory_stats()
        return held["peak_bytes_in_use"] if held else machine.peak_rss_bytes()

    def device(self) -> str:
        """Returns JAX's name of the device."""
        return jax.devices()[0].device_kind


def _sums(objective: Objective, params, frozen, batch) -> dict:
    """Returns the metrics of a masked batch as (total, count) pairs."""
    key = Key(jnp.uint32(0), jnp.uint32(0))
    return objective.loss(params, frozen, batch, key, False)[1]


def _electra_losses(objective: Objective, params, frozen, batch) -> dict:
    """Returns both losses, with batch["drawn"] [B, K] instead of samples."""
    generator, discriminator = (
        objective.models[name] for name in ("generator", "discriminator")
    )
    bytes_V = frozen["piece_bytes"]
    platform = Platform.of(jax.devices())
    model = generator.extract(params)
    logits_TV, _ = masked_logits(generator.encoder, model, batch, None, platform)
    batch = substituted(batch, batch["drawn"])
    encoder, model = discriminator.encoder, discriminator.extract(params)
    x_BLH = heads.encode(encoder, model, batch, None, platform)
    detector, _ = VARIANTS["electra"].loss(
        encoder, model, x_BLH, batch, bytes_V=bytes_V, platform=platform
    )
    return {
        "generator_loss": token_loss(logits_TV, batch, bytes_V)[0],
        "detector_loss": detector,
    }


def held_out(folder: str) -> list[dict[str, np.ndarray]]:
    """Returns the masked held-out batches of a case, the same for both sides."""
    with np.load(Path(folder) / "held_out.npz") as saved:
        arrays = dict(saved)
    count = len(arrays["tokens"])
    return [{name: array[i] for name, array in arrays.items()} for i in range(count)]
