"""Takes a run to the Hugging Face format, and a Hugging Face folder into a run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from plmjax import PlmjaxError, tree
from plmjax import config as config_lib
from plmjax.evaluate.model import open_model
from plmjax.interop.card import CardFacts, model_card
from plmjax.interop.huggingface import export_folder, read_folder
from plmjax.train.workdir import Workdir

# How each figure of scores.json was measured, for the model card.
_FIGURES = {
    "loss": "nats a masked token, mean over the held-out documents, fixed masks",
    "unigram_loss": "the same for a guess by training frequencies alone",
    "accuracy": "share of the masked tokens guessed right",
    "perplexity": "exp(loss)",
    "bits_per_byte": "bits a UTF-8 byte of masked text, white space not counted",
}

IMPORTED = "import"


def export(
    workdir: Workdir, to: Path, log: Callable[[str], Any], checkpoint: str = "newest"
) -> None:
    """Writes a checkpoint of a run as a folder that transformers loads.

    Raises:
      PlmjaxError: no good checkpoint, or `to` holds something that is not ours.
    """
    config, store = workdir.config(), workdir.store()
    model = open_model(str(workdir.path), checkpoint)
    found = workdir.read("scores.json") or {}
    scores = found if found.get("step") == model.step else {}
    splits = store.manifest["splits"]
    description = dict(store.manifest["source"])
    description |= {
        f"{name} {what}": f"{splits[name][what]:,}"
        for name in splits
        for what in ("documents", "tokens")
    }
    facts = CardFacts(
        name=model.name,
        family=model.encoder.family,
        parameters=tree.count(model.params),
        mask_token=model.tokenizer.decode([model.tokenizer.mask_id]).strip(),
        data=description,
        # What was not set says nothing.
        recipe={"step": model.step}
        | {
            key: value
            for key, value in config_lib.flatten(config_lib.to_dict(config)).items()
            if value not in (None, ())
        },
        figures=[
            (name, scores[name], how)
            for name, how in _FIGURES.items()
            if name in scores
        ],
    )
    lengths = [length for _, length, _ in config.data.phases] or [config.data.length]
    params = jax.device_get(model.params)
    export_folder(
        to, model.encoder, params, model.tokenizer, model_card(facts), max(lengths)
    )
    log(f"Exported step {model.step:,} to {to}.")


def import_folder(source: Path, workdir: Workdir, log: Callable[[str], Any]) -> None:
    """Makes a Hugging Face folder the start of a run in `workdir`.

    The folder is checked whole and copied in our own writing to workdir/import.

    Raises:
      PlmjaxError: the folder cannot be used, or the workdir holds a run already.
    """
    found = read_folder(source)
    for note in found.notes:
        log(note)
    if found.params["head"] is None:
        raise PlmjaxError(
            f"{source} has no vocabulary head to go on training with.",
            hint="Give the folder of the masked language model.",
        )
    workdir.create()
    with workdir.locked():
        if workdir.begun:
            raise PlmjaxError(
                f"{workdir.path} holds a run already.",
                hint="Choose another --workdir for the import.",
            )
        card = f"# {source.name}\n\nImported by plmjax as the start of a run.\n"
        to = workdir / IMPORTED
        export_folder(to, found.config, found.params, found.tokenizer, card)
    log(
        f"Imported {tree.count(found.params):,} parameters to {to}.\n\nNext:\n"
        f"  plmjax pretrain --workdir={workdir.path} --config.data.source.kind=text "
        "--config.data.source.paths=..."
    )


def imported_layer(workdir: Workdir) -> dict:
    """Returns the config values that an import settles; {} without one."""
    folder = workdir / IMPORTED
    if not folder.is_dir():
        return {}
    config = read_folder(folder).config
    preset = "roberta-base" if config.family == "roberta" else "bert-base"
    return {
        "model": {"preset": preset} | vars(config),
        "tokenizer": {"path": IMPORTED},
        # A trained model is easily untrained: a tenth of the rate for a new one.
        "train": {
            "init_from": IMPORTED,
            "epochs": 1.0,
            "optimizer": {"learning_rate": 1e-4},
        },
    }
