"""Measures a config's training step, with the data loading of `pretrain`."""

import functools
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from plmjax import PlmjaxError, machine
from plmjax.console import ignore_line
from plmjax.data.loader import Phase, read_ahead
from plmjax.pretrain.build import PretrainSetup, build, check
from plmjax.pretrain.start import fresh_state, frozen_arrays, step_of
from plmjax.train import hlo, sharding
from plmjax.train.metrics import peak_flops
from plmjax.train.step import lower
from plmjax.train.timing import Timed, run_steps
from plmjax.workdir import RunConfig, Workdir

_PROFILED = 4  # steps under the profiler
_SHOWN = 24  # rows of the profile that are printed; --json has all


def bench_train(
    config: RunConfig,
    steps: int = 20,
    workdir: Path | None = None,
    log: Callable[[str], Any] = print,
    *,
    profile: bool = False,
) -> dict[str, Any]:
    """Times `steps` steps of each phase of a config, after compiling and two more.

    With `profile`, a few steps more are taken under JAX's profiler, for the
    milliseconds of each part of the model.

    The data are prepared in a temporary directory, or those of the run in `workdir`
    are read. Times are in seconds unless their name has ms; tokens exclude padding and
    are summed over all devices.

    Raises:
      PlmjaxError: an error that the user can fix.
    """
    if steps < 1:
        raise PlmjaxError(f"--steps={steps} must be at least 1.")
    mesh = sharding.make_mesh(config.mesh)
    check(config, mesh)
    before = machine.load_average()
    with tempfile.TemporaryDirectory() as folder, jax.set_mesh(mesh):
        setup = build(config, Workdir(workdir or folder), mesh, log)
        step, phases = step_of(setup, setup.steps), []
        for number in range(len(setup.loader.phases)):
            phases.append(_time_phase(setup, step, number, steps, profile))
    devices = jax.devices()
    return {
        "machine": machine.facts(),
        "devices": f"{len(devices)} x {devices[0].device_kind}",
        "load": [before, machine.load_average()],
        "model": {
            "layers": setup.encoder.layers,
            "width": setup.encoder.width,
            "vocab_size": setup.encoder.vocab_size,
            "dtype": setup.encoder.dtype,
        },
        "phases": phases,
    }


def _time_phase(
    setup: PretrainSetup,
    step: functools.partial,
    number: int,
    steps: int,
    profile: bool,
) -> dict[str, Any]:
    phase = setup.loader.phases[number]
    start = sum(earlier.steps for earlier in setup.loader.phases[:number])

    def batch(index: int) -> dict:
        # A phase that is shorter than the benchmark is repeated.
        return setup.loader.batch(start + index % phase.steps)

    state, frozen = fresh_state(setup, ignore_line), frozen_arrays(setup)
    first = sharding.put_rows(setup.mesh, batch(0))
    begin = time.perf_counter()
    program = lower(step, state, frozen, first).compile()
    compiled = functools.partial(program, **step.keywords)
    compile_s = time.perf_counter() - begin
    run = functools.partial(run_steps, compiled, frozen=frozen, mesh=setup.mesh)
    batches = read_ahead(batch, 0, steps + 2 + _PROFILED)
    state, _ = run(state=state, batches=batches, steps=2)
    state, timed = run(state=state, batches=batches, steps=steps)
    figures = _figures(setup, phase, timed) | {
        "compile_s": compile_s,
        "peak_memory_mb": _peak_memory_bytes() / 1e6,
    }
    if profile:
        places = hlo.places(program.as_text() or "")
        figures["profile"] = _profile(
            places, lambda: run(state=state, batches=batches, steps=_PROFILED)
        )
    return figures


def _profile(places: dict[str, str], take: Callable) -> list[dict[str, Any]]:
    """Returns {what, ms, operations} of each place of the model in a step of a device.

    `take` takes _PROFILED steps. Times of operations that run side by side both count.
    """
    steps = _PROFILED * jax.local_device_count()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            take()
        files = [str(file) for file in Path(folder).rglob("*.xplane.pb")]
        data = [jax.profiler.ProfileData.from_file(file) for file in files]
    groups: dict[str, dict[str, Any]] = {}
    lines = (line for one in data for plane in one.planes for line in plane.lines)
    for event in (event for line in lines for event in line.events):
        name = dict(event.stats).get("hlo_op")
        if name in places:
            what = places[name]
            group = groups.setdefault(what, {"what": what, "ms": 0.0, "operations": 0})
            group["ms"] += event.duration_ns / 1e6 / steps
            group["operations"] += 1 / steps
    return sorted(groups.values(), key=lambda group: -group["ms"])


def _figures(setup: PretrainSetup, phase: Phase, timed: Timed) -> dict[str, Any]:
    median, best = statistics.median(timed.steps_s), min(timed.steps_s)
    length = phase.plan.length
    tokens = phase.batch * length * phase.plan.fill
    speed = setup.phase_flops(phase) / median
    peak = peak_flops()
    return {
        "length": length,
        "batch": phase.batch,
        "fill": phase.plan.fill,
        "steps": len(timed.steps_s),
        "median_ms": median * 1e3,
        "best_ms": best * 1e3,
        "tokens_per_s": tokens / median,
        "best_tokens_per_s": tokens / best,
        "mfu": None if peak is None else speed / (peak * setup.mesh.size),
        "tflops_per_s": speed / 1e12,
        "loader_share": timed.loader_s / sum(timed.steps_s),
    }


def _peak_memory_bytes() -> int:
    """Returns the largest peak of all devices; on a CPU, that of the process."""
    all_stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peak = max(stats.get("peak_bytes_in_use", 0) for stats in all_stats)
    return peak or machine.peak_rss_bytes()


def as_text(result: dict[str, Any]) -> str:
    """Returns the result as readable lines."""
    model, (before, after) = result["model"], result["load"]
    lines = [
        machine.as_text(result["machine"]),
        f"{result['devices']}; load average {before} before, {after} after",
        f"{model['layers']} layers x {model['width']}, {model['vocab_size']:,} pieces, "
        f"{model['dtype']}",
    ]
    for phase in result["phases"]:
        mfu = phase["mfu"]
        lines += [
            f"\n{phase['batch']} rows x {phase['length']} tokens, {phase['fill']:.1%} "
            f"full, {phase['steps']} steps:",
            f"  compile          {phase['compile_s']:,.1f} s",
            f"  step             {phase['median_ms']:,.1f} ms median, "
            f"{phase['best_ms']:,.1f} best",
            f"  useful tokens/s  {phase['tokens_per_s']:,.0f} median, "
            f"{phase['best_tokens_per_s']:,.0f} best",
            f"  matrix products  {phase['tflops_per_s']:,.3f} TFLOP/s"
            + ("" if mfu is None else f", MFU {mfu:.1%}"),
            f"  loader           {phase['loader_share']:.1%} of the time",
            f"  peak memory      {phase['peak_memory_mb']:,.0f} MB",
        ]
        profile = phase.get("profile")
        if profile == []:
            lines.append(
                "  profile          JAX's profiler saw no operation of the step"
            )
        if profile:
            total = sum(part["ms"] for part in profile)
            lines += ["  of a step (operations side by side both count):", ""] + [
                f"  {part['ms']:9,.1f} ms {part['ms'] / total:6.1%}  {part['what']}"
                for part in profile[:_SHOWN]
            ]
    return "\n".join(lines)
