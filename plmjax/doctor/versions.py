"""Checks Python and the packages against the requirements of plmjax's metadata."""

import platform
import re
from importlib import metadata

from packaging.requirements import Requirement

import plmjax
from plmjax.doctor.check import Check, ok, problem, warning

# Packages that the report shows; others are named only if something is wrong.
_SHOWN = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tokenizers", "numpy")
_MEND = "pip install --upgrade {}"


def checks() -> list[Check]:
    """Returns a row each for plmjax, Python and all correct packages, and one for each
    wrong package.
    """
    found = [ok("plmjax", f"{plmjax.__version__} ({plmjax.__path__[0]})")]
    try:
        asked = metadata.metadata("plmjax")
    except metadata.PackageNotFoundError:
        mend = "pip install -e . in the checkout"
        found.append(warning("packages", "plmjax is not installed, only found", mend))
        return found
    python = platform.python_version()
    wanted = asked["Requires-Python"] or ""
    # A much older Python could not even start plmjax.
    if Requirement(f"python{wanted}").specifier.contains(python, prereleases=True):
        found.append(ok("python", python))
    else:
        mend = f"Use Python {wanted}."
        found.append(problem("python", f"{python}, plmjax needs {wanted}", mend))
    wrong = [
        check for text in metadata.requires("plmjax") or [] if (check := _wrong(text))
    ]
    # The metadata of jax has the versions of jaxlib that it works with.
    if version("jax"):
        wrong += [c for t in metadata.requires("jax") or [] if (c := _wrong(t))]
    wrong += _plugins()
    shown = ", ".join(f"{name} {v}" for name in _SHOWN if (v := version(name)))
    return [*found, *wrong] if wrong else [*found, ok("packages", shown)]


def version(name: str) -> str | None:
    """Returns the version of an installed package, or None."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _wrong(text: str) -> Check | None:
    """Returns the problem of a required package; None without one."""
    asked = Requirement(text)
    # Requirements of extras do not count: the empty name selects no extra.
    if asked.marker is not None and not asked.marker.evaluate({"extra": ""}):
        return None
    there = version(asked.name)
    mend = _MEND.format(f"'{asked.name}{asked.specifier}'")
    if there is None:
        return problem(asked.name, f"is missing, {asked.specifier} is needed", mend)
    if not asked.specifier.contains(there, prereleases=True):
        return problem(asked.name, f"{there}, {asked.specifier} is needed", mend)
    return None


def _plugins() -> list[Check]:
    """Returns warnings for accelerator plugins whose version differs from jaxlib's."""
    jaxlib, found = version("jaxlib"), []
    for package in metadata.distributions():
        name = package.metadata["Name"] or ""
        if not re.fullmatch(r"jax-(cuda|rocm)\d+-(plugin|pjrt)", name):
            continue
        if package.version != jaxlib:
            mend = _MEND.format(f"{name}=={jaxlib}")
            seen = f"{package.version} beside jaxlib {jaxlib}"
            found.append(warning(name, seen, mend))
    return found
