"""Tokenising once for all trials that read the same text with the same vocabulary.

A dry run in DIR/texts/KEY makes tokenizer and token store as any run would; trials get
a copy of the tokenizer and a link to the stores. Each trial checks that both are what
its config asks for, and makes new ones if not.
"""

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from plmjax import config as config_lib
from plmjax.experiments.trials import Trial
from plmjax.workdir import RunConfig

# Keys of the data block that do not change the tokens.
_NOT_SHAPING = ("length", "rows", "workers", "phases")


class Texts:
    """The prepared texts of a sweep, and the trials that should wait for them."""

    def __init__(self, root: Path, known: Sequence[Trial]):
        """`known` are the trials that will certainly run; a search has none."""
        self.root = root
        self._counts = Counter(map(key_of, known))
        self._failures: dict[str, dict[str, Any]] = {}

    def directory(self, trial: Trial) -> Path:
        """Returns the folder of a trial's prepared text."""
        return self.root / "texts" / key_of(trial)

    def wanted(self, trial: Trial) -> bool:
        """Whether a trial should wait until its text is prepared."""
        # In a search the count is 0: a later trial will read this text, too.
        alone = self._counts[key_of(trial)] == 1
        begun = (trial.directory / "run.json").exists()
        return not alone and not begun and not self.ready(trial)

    def ready(self, trial: Trial) -> bool:
        """Whether the text of a trial is prepared."""
        return (self.directory(trial) / "run.json").exists()

    def command(self, trial: Trial, fixed: Sequence[str]) -> list[str]:
        """Returns the arguments of `plmjax` that prepare the text of a trial."""
        *arguments, _ = trial.command(fixed)
        return [*arguments, f"--workdir={self.directory(trial)}", "--dry_run"]

    def failed(self, trial: Trial, failure: dict[str, Any]) -> None:
        """Records why the text of a trial could not be prepared."""
        self._failures[key_of(trial)] = failure

    def failure(self, trial: Trial) -> dict[str, Any] | None:
        """Returns why the preparation of a trial's text failed; None if it did not."""
        return self._failures.get(key_of(trial))

    def link(self, trial: Trial) -> None:
        """Links the prepared text, if any, into a trial that has not begun."""
        if not self.ready(trial) or (trial.directory / "run.json").exists():
            return
        shared, directory = self.directory(trial), trial.directory
        shutil.copytree(
            shared / "tokenizer", directory / "tokenizer", dirs_exist_ok=True
        )
        if not (directory / "data").exists():
            target = os.path.relpath(shared / "data", directory)
            (directory / "data").symlink_to(target, target_is_directory=True)
        # Copied last: it marks the other two as complete.
        shutil.copyfile(shared / "run.json", directory / "run.json")


def key_of(trial: Trial) -> str:
    """Returns a name that trials share if they read the same tokens."""
    config = config_lib.build(RunConfig, trial.config)
    data = {k: v for k, v in trial.config["data"].items() if k not in _NOT_SHAPING}
    # Objectives with pairs need sentences even if the data block asks for none.
    pairs = config.objective.pairs_config is not None
    shape = json.dumps([data, trial.config["tokenizer"], pairs], sort_keys=True)
    return hashlib.sha256(shape.encode()).hexdigest()[:12]
