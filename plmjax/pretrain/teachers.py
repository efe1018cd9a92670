"""Opens teachers, checks them against their students, and aligns their pieces.

Legend: V vocabulary of the student.
"""

import dataclasses
import hashlib
from pathlib import Path

import jax
import numpy as np

from plmjax import Exit, PlmjaxError, tree
from plmjax.evaluate.model import Model, open_model
from plmjax.files import write_json
from plmjax.interop.folder import check_is_folder
from plmjax.models import EncoderConfig
from plmjax.models.config import resolve
from plmjax.objectives import Distill, DistillConfig, Pieces
from plmjax.objectives.distill import no_teacher
from plmjax.pretrain.checks import check_one_document
from plmjax.tokenizers import Tokenizer
from plmjax.workdir import RunConfig, Workdir

# With fewer of the student's pieces known, a teacher's input is mostly masks.
_SMALLEST_SHARE = 0.5
# The record of a run's teacher.
_FILE = "teacher.json"


def load(config: RunConfig, workdir: Workdir) -> Model | None:
    """Opens the teacher of a run and checks its recorded digest; None without one.

    Raises:
      PlmjaxError: a teacher is needed but missing, does not suit this student, or is
        not the one that the run was begun with.
    """
    objective = config.objective
    if not isinstance(objective, DistillConfig):
        return None
    if objective.teacher is None:
        raise no_teacher()
    saved = workdir.read(_FILE) if workdir.begun else None
    path = workdir.resolve(objective.teacher)
    if saved is not None and not path.is_dir():
        path = Path(saved["path"])  # begun in another directory
    teacher = open_teacher(objective, path)
    _check_early(config, objective, teacher, path, workdir)
    if saved is not None and saved["digest"] != digest(teacher):
        raise PlmjaxError(
            f"the teacher in {path} is not the one that {workdir.path} began with: "
            "its weights, config or vocabulary differ.",
            hint="Restore it, or start again in another --workdir. If the teacher is "
            "still being trained, use an export of it.",
            code=Exit.MODEL,
        )
    return teacher


def record(config: RunConfig, workdir: Workdir, teacher: Model | None) -> None:
    """Records the teacher of a new run, so that the run resumes with no other."""
    if workdir.begun:
        return
    if teacher is None:
        (workdir / _FILE).unlink(missing_ok=True)
        return
    path = workdir.resolve(str(_block(config).teacher)).resolve()
    encoder = dataclasses.asdict(teacher.encoder)
    note = {"encoder": encoder, "digest": digest(teacher), "path": str(path)}
    write_json(workdir / _FILE, note)


def _check_early(
    config: RunConfig,
    objective: DistillConfig,
    teacher: Model,
    path: Path,
    workdir: Workdir,
) -> None:
    """Raises PlmjaxError for errors that can be detected before any text is read."""
    if objective.start == "teacher" and config.train.init_from is not None:
        raise PlmjaxError(
            "objective.start=teacher and train.init_from="
            f"{config.train.init_from} both set the student's start weights.",
            hint="Set --config.objective.start=fresh or --config.train.init_from=none.",
        )
    if config.tokenizer.path is None and objective.align == "none":
        inside = path / "tokenizer"
        raise PlmjaxError(
            "the student needs the teacher's vocabulary, but the config trains a new "
            "tokenizer.",
            hint=f"Set --config.tokenizer.path={inside if inside.is_dir() else path}, "
            "or --config.objective.align=strings.",
        )
    longest = config.data.longest
    if longest > teacher.encoder.max_length:
        raise PlmjaxError(
            f"data.length={longest} is longer than the {teacher.encoder.max_length} "
            f"positions of the teacher {objective.teacher}.",
            hint="Shorten the rows (data.length, data.phases).",
        )
    attention = teacher.encoder.attention
    name = f"the teacher's model.attention={attention!r}"
    check_one_document(config, teacher.encoder, name)
    pieces = teacher.tokenizer
    student = resolve(config.model, pieces.vocab_size, pieces.pad_id)
    Distill(objective, student, Pieces(0, (0,), (1,)), teacher.encoder)


def open_teacher(config: DistillConfig, path: Path) -> Model:
    """Opens the teacher: its encoder and vocabulary head alone.

    Raises:
      PlmjaxError: there is no model, or it has no vocabulary head.
    """
    check_is_folder(path, config.teacher, f"objective.teacher={config.teacher}")
    model = open_model(str(path))
    params = {name: model.params[name] for name in ("encoder", "head")}
    encoder = model.encoder
    if config.teacher_dtype is not None:
        encoder = dataclasses.replace(encoder, dtype=config.teacher_dtype)
    return dataclasses.replace(model, encoder=encoder, params=params)


def digest(teacher: Model) -> str:
    """Returns the SHA-256 of all that determines a teacher's outputs, but its dtype."""
    encoder = dataclasses.replace(teacher.encoder, dtype="float32", remat=False)
    shape = f"{encoder} {teacher.tokenizer.vocabulary_digest}\n"
    hasher = hashlib.sha256(shape.encode())
    for name, leaf in sorted(tree.flatten(teacher.params).items()):
        array = np.ascontiguousarray(jax.device_get(leaf))
        hasher.update(f"{name} {array.dtype} {array.shape}\n".encode())
        hasher.update(array.data)
    return hasher.hexdigest()


def check_vocabulary(
    config: RunConfig, student: Tokenizer, teacher: Model
) -> list[str]:
    """Returns lines about the pieces that both have, if they are aligned.

    Raises:
      PlmjaxError: the vocabularies differ without alignment, or too much.
    """
    objective, theirs = _block(config), teacher.tokenizer
    if objective.align == "none":
        if student.vocab == theirs.vocab and student.kind == theirs.kind:
            return []
        raise PlmjaxError(
            f"the student's vocabulary ({student.kind}, {student.vocab_size:,} pieces) "
            f"is not that of its teacher {objective.teacher} ({theirs.kind}, "
            f"{theirs.vocab_size:,} pieces).",
            hint="Set --config.tokenizer.path to the teacher's tokenizer"
            + (
                ", or --config.objective.align=strings to compare only pieces that "
                "both have."
                if student.kind == theirs.kind
                else "."
            ),
            code=Exit.MODEL,
        )
    if student.kind != theirs.kind:
        raise PlmjaxError(
            f"objective.align=strings compares pieces of one kind; the student's are "
            f"{student.kind}, the teacher's {theirs.kind}.",
            hint="Set --config.tokenizer.path to the teacher's tokenizer.",
            code=Exit.MODEL,
        )
    known_V = align(student, theirs, student.vocab_size)["known"]
    coverage = f"{known_V.sum():,} of the student's {len(known_V):,} pieces"
    if known_V.mean() < _SMALLEST_SHARE:
        raise PlmjaxError(
            f"the teacher knows only {coverage} ({known_V.mean():.0%}).",
            hint="Set --config.tokenizer.path to the teacher's tokenizer.",
            code=Exit.MODEL,
        )
    return [
        f"The teacher knows {coverage} ({known_V.mean():.1%}). The others become its "
        "mask token, and the soft loss leaves them out."
    ]


def align(student: Tokenizer, teacher: Tokenizer, size: int) -> dict[str, np.ndarray]:
    """Returns the teacher's id of each of the student's pieces.

    "ids" [size] int32 are the teacher's ids by spelling, of special tokens by their
    role; its mask for a piece that it lacks, since it has learnt to predict there.
    "known" [size] bool is True for pieces that it has.
    """
    ids_V, known_V = np.full(size, teacher.mask_id, np.int32), np.zeros(size, bool)
    for piece, number in student.vocab.items():
        if number not in student.special_ids and piece in teacher.vocab:
            ids_V[number], known_V[number] = teacher.vocab[piece], True
    for role in ("pad_id", "cls_id", "sep_id", "mask_id", "unk_id"):
        ours, theirs = getattr(student, role), getattr(teacher, role)
        if ours is not None and theirs is not None:
            ids_V[ours], known_V[ours] = theirs, True
    return {"ids": ids_V, "known": known_V}


def frozen(
    config: RunConfig, encoder: EncoderConfig, tokenizer: Tokenizer, teacher: Model
) -> dict:
    """Returns the inputs of a distillation's loss beside the parameters."""
    arrays = {"teacher": teacher.params}
    if _block(config).align == "strings":
        arrays["pieces"] = align(tokenizer, teacher.tokenizer, encoder.vocab_size)
    return arrays


def _block(config: RunConfig) -> DistillConfig:
    assert isinstance(config.objective, DistillConfig), config.objective.kind
    return config.objective
