"""What golden files hold: plans of several targets. Run it to write them anew."""

import shlex
from pathlib import Path

from plmjax.launch import gke, sky, slurm, tpu_vm
from plmjax.launch.command import Plan, as_text

GOLDEN = Path(__file__).parents[1] / "golden" / "launch"
# A shell, YAML and sbatch each have their own idea of these.
AWKWARD = '--workdir=runs/it\'s "$HOME" `x` \\n #1: é {{nodes}} !'
ARGUMENTS = ["pretrain", "--config=configs/pretrain/bert_mini.py", AWKWARD]
DIRECTORY = Path("/home/me/my $project's")
COMMANDS = """\
# what a sweep wrote
plmjax pretrain --config.train.learning_rate=1e-4 --workdir='runs/a b'

python -m plmjax pretrain --config.train.learning_rate=3e-4 --workdir=runs/\\$c
"""


def plans(folder: Path) -> dict[str, Plan]:
    """Returns a plan a case; `folder` is where a file of commands may be written."""
    commands = folder / "commands"
    commands.write_text(COMMANDS)

    def on_slurm(arguments=ARGUMENTS, **options):
        return slurm.plan(
            slurm.Options(python="python", **options), arguments, DIRECTORY
        )

    def on_tpu(checkout=DIRECTORY, **options):
        own = {"zone": "us-east5-b", "accelerator": "v6e-16"}
        made = tpu_vm.Options(**own, runtime="v2-alpha-tpuv6e", **options)
        return tpu_vm.plan(made, ARGUMENTS, checkout)

    return {
        "slurm_cpu": on_slurm(),
        "slurm_gpu": on_slurm(
            name="bert-mini",
            to="jobs/x",
            nodes=2,
            tasks_per_node=2,
            gpus_per_task=4,
            cpus_per_task=24,
            time="12:00:00",
            partition="a100,h100",
            account="lab",
            extra=("--exclusive", "--comment='two words'"),
            restarts=3,
            grace_seconds=300,
        ),
        "slurm_array": on_slurm(array="8", gpus_per_task=1),
        "slurm_commands": on_slurm((), commands=str(commands), array="%2"),
        "gke_tpu": gke.plan(
            gke.Options(
                image="eu.gcr.io/me/plmjax:1",
                nodes=4,
                accelerator="tpu-v6e-slice",
                topology="4x4",
                devices_per_node=4,
                queue="team",
                namespace="nlp",
            ),
            ARGUMENTS,
        ),
        "gke_gpu": gke.plan(
            gke.Options(
                name="no",
                image="plmjax",
                nodes=2,
                accelerator="nvidia-h100-80gb",
                devices_per_node=8,
                restarts=2,
                grace_seconds=25,
            ),
            ARGUMENTS,
        ),
        "gke_cpu": gke.plan(gke.Options(image="plmjax"), ARGUMENTS),
        "sky_gpu": sky.plan(
            sky.Options(nodes=2, accelerator="H100:8", infra="gcp", spot=True),
            ARGUMENTS,
            DIRECTORY,
            DIRECTORY,
        ),
        "sky_cpu": sky.plan(
            sky.Options(cpus="16+", install="pip install 'plmjax'"),
            ARGUMENTS,
            DIRECTORY,
            None,
        ),
        "tpu_vm": on_tpu(spot=True, project="my-project", extra=("--network=mine",)),
        "tpu_vm_install": on_tpu(None, name="a", install="pip install plmjax[tpu]"),
    }


def text(plan: Plan) -> str:
    """Returns a plan as a golden file holds it."""
    return as_text(plan) + "\n"


def command_line(python: str) -> str:
    """Returns the command of ARGUMENTS as a shell has it."""
    return shlex.join([python, "-m", "plmjax", *ARGUMENTS])


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        for name, plan in plans(Path(folder)).items():
            (GOLDEN / f"{name}.txt").write_text(text(plan))
