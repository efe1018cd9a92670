"""Exports a run to the Hugging Face format, and imports a folder into a run."""

import dataclasses
import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from plmjax import PlmjaxError, tree
from plmjax import config as config_lib
from plmjax.data.config import DataConfig
from plmjax.data.corpus import RIGHTS
from plmjax.evaluate.model import (
    PARTS,
    Model,
    Trained,
    finished,
    is_finetuned,
    is_run,
    model_folders,
    open_run,
)
from plmjax.files import write_json
from plmjax.interop.card import CardFacts, limits
from plmjax.interop.folder import (
    check_only,
    check_replaceable,
    hub_name,
    replacing_export,
)
from plmjax.interop.huggingface import export_folder, read_folder
from plmjax.models.config import PRESETS
from plmjax.objectives import DistillConfig, ElectraConfig, MLMConfig
from plmjax.workdir import RunConfig, Workdir

# The measurement of each figure in scores.json, for the model card. If an objective has
# several terms, the term precedes the name.
_FIGURES = {
    "loss": "what training minimises, mean over the held-out documents, fixed masks",
    "unigram_loss": "nats a predicted token for a guess by training frequencies alone",
    "accuracy": "share of the predicted tokens or pairs that are right",
    "perplexity": "exp of the loss in nats a predicted token",
    "bits_per_byte": "bits a UTF-8 byte of predicted text, white space not counted",
    "precision": "share of the tokens called replaced that were",
    "recall": "share of the replaced tokens that were called so",
    "separation": "mean probability of a replacement where there was one, minus where "
    "there was none",
    "share": "share of the tokens",
    "kept": "the student's accuracy as a share of the teacher's, at the same masks",
    "smaller": "share of the teacher's parameters that the student does without",
    "faster": "forward pass: tokens a second beside the teacher's, minus 1",
}

IMPORTED = "import"


def export(
    workdir: Workdir,
    to: Path,
    log: Callable[[str], Any],
    checkpoint: str = "newest",
    part: str | None = None,
) -> None:
    """Writes a checkpoint of a run as folders that transformers loads, if it can.

    A run of one model becomes the folder `to`; one of several becomes a folder for each
    inside of `to`, or `to` itself with the one that `part` names.

    Raises:
      PlmjaxError: no good checkpoint, no such model, or `to` holds files of others.
    """
    if is_finetuned(workdir.path):
        _copy(finished(workdir.path), to, log)
        return
    trained, store = open_run(workdir, checkpoint), workdir.store()
    export_trained(trained, workdir, store.manifest, to=to, log=log, part=part)


def _copy(folder: Path, to: Path, log: Callable[[str], Any]) -> None:
    """Copies the export of a fine-tuning, its best or last step."""
    check_target(to, [to])
    with replacing_export(to) as new_folder:
        shutil.copytree(folder, new_folder, dirs_exist_ok=True)
    log(f"Exported to {to}.")


def export_trained(
    trained: Trained,
    workdir: Workdir,
    manifest: dict[str, Any],
    to: Path,
    log: Callable[[str], Any],
    part: str | None = None,
    scores: dict[str, Any] | None = None,
) -> None:
    """Exports open weights, as `export` does, with a token store's manifest.

    `scores` are the figures of the card; None: those in scores.json, if of this step.
    """
    models = trained.models()
    if part is not None and part not in models:
        raise PlmjaxError(
            f"{workdir.path} has no model {part!r}.",
            hint=f"It has: {', '.join(models)}.",
        )
    folders = {part: to} if part is not None else folders_for(to, models)
    check_target(to, folders.values())
    saved = scores or workdir.read("scores.json") or {}
    scores = saved if saved.get("step") == trained.step else {}
    described = _described(trained.config.data, workdir, manifest)
    for name, folder in folders.items():
        model = models[name]
        facts = _card_facts(model, trained.config, described, scores)
        problem = export_folder(
            folder,
            model.encoder,
            jax.device_get(model.params),
            tokenizer=model.tokenizer,
            card=facts,
            length=trained.config.data.longest,
        )
        log(f"Exported step {trained.step:,} to {folder}.")
        if problem is not None:
            log(f"Only plmjax can read it: {problem}")
            continue
        for line in facts.limitations:
            log(f"Note: {line}")


def _described(data: DataConfig, workdir: Workdir, manifest: dict) -> dict:
    """Returns a manifest for the card: with rights as the config states them now."""
    mixture = (workdir.read("mixture.json") or {"sources": []})["sources"]
    source = dict(manifest["source"])
    entries = data.sources or (data.source,)
    several = source.get("sources", [source])
    described = [
        part | {name: getattr(entry, name) for name in RIGHTS if getattr(entry, name)}
        for part, entry in zip(several, entries, strict=True)
    ]
    if "sources" not in source:
        return manifest | {"source": described[0]}
    shares = {fact["name"]: fact for fact in mixture}
    source["sources"] = [part | shares.get(part["name"], {}) for part in described]
    return manifest | {"source": source}


def folders_for(to: Path, models: Collection[str]) -> dict[str, Path]:
    """Returns {model: folder}: `to` for one model, its subfolders for several."""
    return {name: to / name if len(models) > 1 else to for name in models}


def check_target(to: Path, folders: Collection[Path]) -> None:
    """Raises PlmjaxError unless `to` is free, or an export of the same models."""
    if is_run(to):
        raise PlmjaxError(
            f"{to} is a run's workdir.", hint="Choose another folder for the export."
        )
    if to.exists() and not to.is_dir():
        raise PlmjaxError(f"{to} is a file.", hint="Choose another name.")
    here = model_folders(to)
    if here and ("model" in here) != (to in folders):
        raise PlmjaxError(
            f"{to} already holds {' and '.join(map(str, here.values()))}, which the "
            "export would not replace.",
            hint="Choose another folder, or remove this one.",
        )
    if to not in folders:
        check_only(to, PARTS)
    for folder in dict.fromkeys([*folders, *here.values()]):
        check_replaceable(folder)


def _task(model: Model) -> Any:
    if model.encoder.causal:
        return "causal-lm"
    if "head" in model.params:
        return "masked-lm"
    return "detector" if "detector" in model.params else "encoder"


_UNITS = {
    "span": " of spans (SpanBERT; Joshi et al. 2019, arXiv:1907.10529)",
    "ngram": " of up to three words (ALBERT; Lan et al. 2019, arXiv:1909.11942)",
    "word": " of whole words",
    "token": "",
}
_PAIRS = {
    "nsp": " and next-sentence prediction (BERT; Devlin et al. 2018, arXiv:1810.04805)",
    "sop": " and sentence-order prediction (ALBERT; Lan et al. 2019, arXiv:1909.11942)",
    "none": "",
}
_VARIANTS = {
    "electra_15": "replaced-token detection at the masked tokens alone (ELECTRA 15%)",
    "replace_mlm": "masked language modelling without mask tokens (Replace-MLM)",
    "all_tokens_mlm": "masked language modelling of all tokens (All-Tokens MLM)",
}


def _objective_name(config: RunConfig, model_name: str) -> str | None:
    """Returns the objective for the model card; None if it is the task's usual one."""
    objective = config.objective
    if isinstance(objective, MLMConfig):
        more = _UNITS[objective.unit] + _PAIRS[objective.pairs]
        return f"masked language modelling{more}" if more else None
    if isinstance(objective, DistillConfig):
        return "distillation (Sanh et al. 2019, arXiv:1910.01108)"
    if isinstance(objective, ElectraConfig) and model_name == "discriminator":
        if name := _VARIANTS.get(objective.variant):
            return f"{name}, as compared by Clark et al. 2020 (arXiv:2003.10555)"
        if objective.tie == "disentangled":
            return (
                "replaced token detection with gradient-disentangled embedding sharing "
                "(DeBERTa-v3; He et al. 2021, arXiv:2111.09543)"
            )
    return None


def _card_facts(
    model: Model, config: RunConfig, manifest: dict, scores: dict
) -> CardFacts:
    splits, description = manifest["splits"], dict(manifest["source"])
    description |= {
        f"{name} {what}": splits[name][what]
        for name in splits
        for what in ("documents", "tokens")
    }
    base_model = config.card.base_model or _base_model(config)
    several = "" if model.part == "model" else f" {model.part}"
    mask = model.tokenizer.mask_id
    figures = []
    for name, value in scores.items():
        # The longest match wins: bits_per_byte over byte, unigram_loss over loss.
        stem = "loss" if name.startswith("loss_") else name  # of a mixture's source
        known = [end for end in sorted(_FIGURES, key=len) if stem.endswith(end)]
        if known and value is not None:
            figures.append((name, value, _FIGURES[known[-1]]))
    return CardFacts(
        name=model.name + several,
        family=model.encoder.family,
        task=_task(model),
        objective=_objective_name(config, model.part),
        parameters=tree.count(model.params),
        mask_token=None if mask is None else model.tokenizer.decode([mask]).strip(),
        data=description,
        # Values that are not set are left out.
        recipe={"step": model.step}
        | {
            key: value
            for key, value in config_lib.flatten(config_lib.to_dict(config)).items()
            if value not in (None, ()) and not key.startswith("card.")
        },
        figures=figures,
        limitations=limits(model.encoder),
        card=dataclasses.replace(config.card, base_model=base_model),
    )


def _base_model(config: RunConfig) -> str | None:
    """Returns the hub's name of the model that a run starts or learns from, or None."""
    teacher = getattr(config.objective, "teacher", None)
    names = [hub_name(path) for path in (config.train.init_from, teacher) if path]
    return next(filter(None, names), None)


def import_folder(source: Path, workdir: Workdir, log: Callable[[str], Any]) -> None:
    """Imports a Hugging Face folder, or those of an export, as the start of a run.

    The folders are checked completely and rewritten in our format to workdir/import.

    Raises:
      PlmjaxError: the folder cannot be used, or the workdir already holds a run.
    """
    if is_run(source):
        raise PlmjaxError(
            f"{source} is a run's workdir, not a Hugging Face folder.",
            hint=f"Give {source / 'export'}, or start from the run with "
            f"--config.train.init_from={source}.",
        )
    folders = model_folders(source) or {"model": source}
    imported = {name: read_folder(folder) for name, folder in folders.items()}
    models = {}
    for name, model in imported.items():
        for note in model.notes:
            log(note)
        parts = (model.config, model.params, model.tokenizer)
        models[name] = Model(*parts, name=source.name, task=model.task)
    record = {"base_model": hub_name(source)}
    how = "Imported by plmjax as the start of a run."
    save_start(workdir, models, record, how, log)
    count = sum(tree.count(model.params) for model in models.values())
    log(
        f"Imported {count:,} parameters to {workdir / IMPORTED}.\n\nNext:\n"
        f"  plmjax pretrain --workdir={workdir.path} --config.data.source.kind=text "
        "--config.data.source.paths=..."
    )


def save_start(
    workdir: Workdir,
    models: Mapping[str, Model],
    record: dict[str, Any],
    how: str,
    log: Callable[[str], Any],
) -> None:
    """Writes models by part to workdir/import, as the start of a run.

    `record` becomes import.json: the base model's name, and perhaps a row length; `how`
    is the sentence of the card.

    Raises:
      PlmjaxError: the workdir cannot be written, or already holds a run.
    """
    workdir.create()
    with workdir.locked():
        if workdir.begun:
            raise PlmjaxError(
                f"{workdir.path} already holds a run.",
                hint="Choose another --workdir for the import.",
            )
        to = workdir / IMPORTED
        write_json(workdir / "import.json", record)
        for name, model in models.items():
            problem = export_folder(
                to if name == "model" else to / name,
                model.encoder,
                model.params,
                model.tokenizer,
                f"# {model.name}\n\n{how}\n",
                task=model.task,
            )
            if problem is not None:
                log(f"Only plmjax can read the {name}: {problem}")


def imported_layer(workdir: Workdir) -> dict:
    """Returns the config values that an import determines; {} without an import."""
    folder = workdir / IMPORTED
    if not folder.is_dir():
        return {}
    models = {name: read_folder(path) for name, path in model_folders(folder).items()}
    if not models:
        raise PlmjaxError(
            f"{folder} holds no model.", hint="Run `plmjax import` again."
        )
    main = next(iter(models.values()))
    tokenizer = folder if "model" in models else folder / next(iter(models))
    record = workdir.read("import.json") or {}
    length = record.get("length")
    return {
        "data": ({} if length is None else {"length": length})
        | ({"rows": "single"} if main.config.one_document else {}),
        "model": {"preset": _preset(main.config.family)}
        | dataclasses.asdict(main.config),
        "objective": _objective(models),
        "tokenizer": {"path": str(tokenizer.relative_to(workdir.path))},
        # A high rate would destroy trained weights: a tenth of that of a new model.
        "train": {
            "init_from": IMPORTED,
            "epochs": 1.0,
            "optimizer": {"learning_rate": 1e-4},
        },
        "card": {"base_model": record.get("base_model")},
    }


def _preset(family: str) -> str:
    """Returns any preset of the family, as the import overrides all its values."""
    return next(name for name, c in PRESETS.items() if c.family == family)


def _objective(models: dict) -> dict:
    """Returns the objective that trains the imported models."""
    main = next(iter(models.values()))
    if main.config.causal:
        return {"kind": "clm"}
    if "generator" not in models:
        return {"kind": "mlm"}
    generator = models["generator"].config
    sizes = ("layers", "width", "heads", "ffn_width", "input_width")
    overrides = {name: getattr(generator, name) for name in sizes}
    overrides["embedding_width"] = overrides.pop("input_width")
    tables = [
        models[name].params["encoder"]["embeddings"]["token"]
        for name in ("generator", "discriminator")
    ]
    tied = np.array_equal(*tables)
    return {
        "kind": "electra",
        "tie": "tokens" if tied else "none",
        "generator": overrides,
    }
