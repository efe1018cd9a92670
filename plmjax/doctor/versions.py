"""Checks Python and the packages against the requirements of plmjax's metadata."""

import platform
import re
from importlib import metadata

from packaging.requirements import Requirement

import plmjax
from plmjax.doctor.check import Check, ok, problem, warning
from plmjax.machine import version

# Packages that the report shows; others are named only if something is wrong.
_SHOWN = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tokenizers", "numpy")
_FIX = "pip install --upgrade {}"


def checks() -> list[Check]:
    """Returns a row each for plmjax, Python and all correct packages, and one for each
    wrong package.
    """
    results = [ok("plmjax", f"{plmjax.__version__} ({plmjax.__path__[0]})")]
    try:
        required = metadata.metadata("plmjax")
    except metadata.PackageNotFoundError:
        fix = "pip install -e . in the checkout"
        results.append(warning("packages", "plmjax is not installed by pip", fix))
        return results
    python = platform.python_version()
    wanted = required["Requires-Python"] or ""
    # A much older Python could not even start plmjax.
    if Requirement(f"python{wanted}").specifier.contains(python, prereleases=True):
        results.append(ok("python", python))
    else:
        fix = f"Use Python {wanted}."
        results.append(problem("python", f"{python}, plmjax needs {wanted}", fix))
    wrong = [
        check for text in metadata.requires("plmjax") or [] if (check := _wrong(text))
    ]
    # The metadata of jax has the versions of jaxlib that it works with.
    if version("jax"):
        wrong += [c for t in metadata.requires("jax") or [] if (c := _wrong(t))]
    wrong += _plugins()
    shown = ", ".join(f"{name} {v}" for name in _SHOWN if (v := version(name)))
    return [*results, *wrong] if wrong else [*results, ok("packages", shown)]


def _wrong(text: str) -> Check | None:
    """Returns the problem of a required package; None without one."""
    needed = Requirement(text)
    # Requirements of extras do not count: the empty name selects no extra.
    if needed.marker is not None and not needed.marker.evaluate({"extra": ""}):
        return None
    installed = version(needed.name)
    fix = _FIX.format(f"'{needed.name}{needed.specifier}'")
    if installed is None:
        return problem(needed.name, f"is missing, {needed.specifier} is needed", fix)
    if not needed.specifier.contains(installed, prereleases=True):
        return problem(needed.name, f"{installed}, {needed.specifier} is needed", fix)
    return None


def _plugins() -> list[Check]:
    """Returns warnings for accelerator plugins whose version differs from jaxlib's."""
    jaxlib, warnings = version("jaxlib"), []
    for package in metadata.distributions():
        name = package.metadata["Name"] or ""
        if not re.fullmatch(r"jax-(cuda|rocm)\d+-(plugin|pjrt)", name):
            continue
        if package.version != jaxlib:
            fix = _FIX.format(f"{name}=={jaxlib}")
            seen = f"{package.version} beside jaxlib {jaxlib}"
            warnings.append(warning(name, seen, fix))
    return warnings
