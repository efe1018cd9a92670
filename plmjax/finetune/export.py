"""Exports a fine-tuned model as a folder for transformers, with its input settings."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from plmjax import config as config_lib
from plmjax import tree
from plmjax.evaluate.model import Model
from plmjax.finetune.config import FinetuneConfig
from plmjax.interop.card import CardFacts, limits
from plmjax.interop.folder import hub_name
from plmjax.interop.huggingface import export_folder
from plmjax.tasks import KINDS
from plmjax.tasks.config import TASK
from plmjax.tasks.labelled import Labelled

# Keys that locate the labelled data of one task; they do not apply to other data.
_FILES = ("train", "held_out", "test", "dataset", "format", "separator")


def export_task(
    model: Model,
    name: str,
    config: FinetuneConfig,
    data: Labelled,
    scores: dict[str, Any],
    folder: Path,
    added: int = 0,
) -> str | None:
    """Writes a fine-tuned model, with its card and the block of its task.

    `added` is the number of training examples beside those of the files. Returns why
    only plmjax can read the folder, if so.

    Raises:
      PlmjaxError: as interop.export_folder.
    """
    assert model.task is not None
    settings = config_lib.to_dict(data.config) | {"labels": list(data.labels) or None}
    settings = {k: v for k, v in settings.items() if k not in _FILES}
    figures = [
        (f"{split.replace('_', '-')} {figure}", value, _HOW[split])
        for split in ("test", "held_out")
        for figure, value in scores.get(split, {}).items()
    ]
    recipe = {
        key: value
        for key, value in config_lib.flatten(config_lib.to_dict(config)).items()
        if value not in (None, ()) and not key.startswith(("task.columns", "card."))
    }
    kind = KINDS[model.task.kind]
    facts = CardFacts(
        name=name,
        family=model.encoder.family,
        task=model.task.kind,
        objective=f"{kind.card.objective}, starting from {model.name}",
        parameters=tree.count(model.params),
        mask_token=None,
        data={
            "kind": data.config.kind,
            "training examples": len(data.train),
            **({"pseudo-labelled examples": added} if added else {}),
            "held-out examples": len(data.held_out),
            "test examples": len(data.test),
            **kind.card_data(
                data.config, {"held_out": data.held_out, "test": data.test}
            ),
            "labels": ", ".join(data.labels),
        },
        recipe=recipe,
        figures=figures,
        limitations=limits(model.encoder, model.task.head),
        card=dataclasses.replace(
            config.card,
            base_model=config.card.base_model or hub_name(str(config.model)),
        ),
    )
    return export_folder(
        folder,
        model.encoder,
        model.params,
        tokenizer=model.tokenizer,
        card=facts,
        length=data.config.length,
        task=model.task,
        files={TASK: json.dumps(settings, indent=2, ensure_ascii=False) + "\n"},
    )


_HOW = {
    "test": "on the test examples, which nothing was chosen by",
    "held_out": "on the held-out examples, by which the best step was chosen",
}
