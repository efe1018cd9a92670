"""The learning rate as a function of the step."""

import itertools
from collections.abc import Callable, Sequence

import jax.numpy as jnp

from plmjax import PlmjaxError
from plmjax.train.config import ScheduleConfig


def warmup_steps(config: ScheduleConfig, steps: int) -> int:
    """Returns the number of warm-up steps."""
    if config.warmup_steps is not None:
        if not 0 <= config.warmup_steps < steps:
            raise PlmjaxError(
                f"train.schedule.warmup_steps={config.warmup_steps} does not fit into "
                f"{steps} training steps.",
                hint="Train longer, or set --config.train.schedule.warmup_steps="
                f"{max(steps // 10, 0)}.",
            )
        return config.warmup_steps
    return min(round(config.warmup_percent / 100 * steps), steps - 1)


def moved_share(config: ScheduleConfig, ends: Sequence, step: int) -> float:
    """Returns the share of the peak at a step whose end was moved (schedule.ends)."""
    warm, low = config.warmup_steps or 0, config.final_percent / 100
    if step < warm:
        return (step + 1) / warm
    share = 1.0
    for (begin, end), (until, _) in itertools.pairwise([*ends, (step, step)]):
        at = min(until, step)
        share = low + (share - low) * (1 - (at - begin) / (end - begin))
        if at == step:
            break
    return share


def make_schedule(config: ScheduleConfig, peak: float, steps: int) -> Callable:
    """Returns a function from a step to its float32 learning rate.

    The first of w warm-up steps has peak / w. Steps count from 0; the final value would
    be that of step `steps`, which never runs, so no step has a rate of 0.
    """
    warm = warmup_steps(config, steps)
    low = config.final_percent / 100
    start = warm
    if config.kind == "wsd":
        start = max(warm, steps - round(config.decay_percent / 100 * steps))

    def rate(step):
        step = jnp.asarray(step, jnp.float32)
        rise = jnp.minimum((step + 1) / max(warm, 1), 1.0)
        done = jnp.clip((step - start) / max(steps - start, 1), 0.0, 1.0)
        if config.kind == "constant":
            fall = jnp.float32(1.0)
        elif config.kind == "cosine":
            fall = low + (1 - low) * 0.5 * (1 + jnp.cos(jnp.pi * done))
        else:
            sqrt = config.kind == "wsd" and config.decay_shape == "sqrt"
            fall = low + (1 - low) * (1 - (jnp.sqrt(done) if sqrt else done))
        return jnp.float32(peak) * jnp.where(step < warm, rise, fall)

    return rate
