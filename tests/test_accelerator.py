"""On a GPU or TPU: what it trains is what a CPU trains, and a stopped run goes on.

    PLMJAX_TEST_PLATFORM=cuda,cpu pytest -m accelerator -n0

The first platform named is the accelerator, the CPU is what it is held against.
"""

import contextlib
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from finetune_common import make_folder
from models.test_kernels import loss_and_gradients
from test_every_objective import CASES, train
from test_resume import flat_state, records
from test_step import run
from tests_common import TINY, run_cli

from plmjax.checkpoint.checkpoints import Checkpoints
from plmjax.models.platform import ANY, Platform
from plmjax.models.positions import reach
from plmjax.train import sharding

pytestmark = [pytest.mark.accelerator, pytest.mark.optimised, pytest.mark.timeout(280)]
MAKE_MESH = sharding.make_mesh


@pytest.fixture(autouse=True, scope="module")
def accelerator():
    if jax.default_backend() == "cpu":
        pytest.skip("no accelerator: see the top of this file")


@contextlib.contextmanager
def on(device, precision: str = "highest"):
    """Meshes hold this one device; float32 products are full float32."""
    with pytest.MonkeyPatch.context() as patched, jax.default_device(device):
        patched.setattr(
            sharding, "make_mesh", lambda config, _=None: MAKE_MESH(config, [device])
        )
        with jax.default_matmul_precision(precision):
            yield


@pytest.mark.parametrize("name", CASES)
def test_every_objective_trains_as_on_a_cpu(name):
    with on(jax.devices("cpu")[0]):
        losses, norms, _ = train(name, (1, 1, 1), steps=3)
    with on(jax.devices()[0]):
        found = train(name, (1, 1, 1), steps=3)
    np.testing.assert_allclose(found[0], losses, rtol=1e-5)
    np.testing.assert_allclose(found[1], norms, rtol=1e-4)


def test_bfloat16_is_near_float32():
    with on(jax.devices()[0]):
        wide, *_ = run((1, 1, 1), dtype="float32")
        narrow, *_ = run((1, 1, 1), dtype="bfloat16")
    np.testing.assert_allclose(narrow, wide, rtol=5e-3)


@pytest.mark.parametrize("rate, window", [(0.0, 0), (0.1, 64)])
@pytest.mark.parametrize("dtype, tolerance", [("float32", 2e-5), ("bfloat16", 2e-2)])
def test_kernels_are_the_attention_of_xla(dtype, tolerance, rate, window):
    """Rows of three blocks, the last not full; 4 heads of queries, 2 of keys."""
    rng = np.random.default_rng(0)
    arrays = [jnp.asarray(rng.normal(size=(2, n, 300, 64)), dtype) for n in (4, 2, 2)]
    bounds = reach(
        jnp.asarray([[1] * 290 + [0] * 10, [1] * 7 + [2] * 293]), window=window
    )
    ours = Platform.of(jax.devices()[:1], kernels=True)
    wanted = [np.asarray(x, np.float32) for x in arrays]
    with jax.default_matmul_precision("highest"):
        found = loss_and_gradients(ours, arrays, bounds, window, rate)
        wanted = loss_and_gradients(ANY, wanted, bounds, window, rate)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        near = np.abs(np.asarray(a, np.float64) - b).max() / np.abs(b).max()
        assert near < tolerance


# Sums into a table's rows have no order on a GPU unless they are told to. The first way
# also forgoes the choice of kernels by trial; by the second the run's .xla keeps it.
@pytest.fixture(
    scope="module",
    params=[
        ("--xla_gpu_deterministic_ops=true", "xla"),
        ("--xla_gpu_exclude_nondeterministic_ops=true", "auto"),
    ],
)
def unbroken(tmp_path_factory, request):
    """(arguments, workdir, flags) of ten steps in one run, by exact additions."""
    from tests_common import sentences

    flags, attention = request.param
    root = tmp_path_factory.mktemp("unbroken")
    (root / "corpus.txt").write_text("\n".join(sentences(400)) + "\n")
    arguments = (*TINY, f"--config.data.source.paths={root / 'corpus.txt'}")
    arguments = (*arguments, f"--config.train.attention={attention}")
    pretrain(*arguments, f"--workdir={root / 'run'}", flags=flags)
    return arguments, root / "run", flags


def pretrain(*arguments, flags: str, code: int = 0) -> str:
    found = run_cli("pretrain", *arguments, XLA_FLAGS=flags)
    assert found.returncode == code, found.stderr
    return found.stdout


def test_a_run_that_goes_on_ends_as_the_unbroken_one(unbroken, tmp_path):
    """Bit for bit: from a checkpoint in its midst, in another process."""
    arguments, reference, flags = unbroken
    # As if it had been killed after its fifth step.
    shutil.copytree(reference, tmp_path / "run")
    shutil.rmtree(Checkpoints(tmp_path / "run" / "checkpoints").path(10))
    shutil.rmtree(tmp_path / "run" / "export")
    told = pretrain(*arguments, f"--workdir={tmp_path / 'run'}", flags=flags)
    assert "Going on from step 5" in told
    one, two = flat_state(reference), flat_state(tmp_path / "run")
    assert one.keys() == two.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], two[name], err_msg=name)
    assert records(reference) == records(tmp_path / "run")


def test_what_was_trained_is_evaluated_exported_and_fine_tuned(unbroken, tmp_path):
    _, workdir, _ = unbroken
    found = run_cli("evaluate", f"--workdir={workdir}", "--json")
    assert found.returncode == 0, found.stderr
    here = json.loads(found.stdout)["loss"]
    found = run_cli("evaluate", f"--workdir={workdir}", "--json", JAX_PLATFORMS="cpu")
    assert found.returncode == 0, found.stderr
    np.testing.assert_allclose(here, json.loads(found.stdout)["loss"], rtol=1e-3)

    folder = make_folder(tmp_path / "folder")
    lines = [{"text": f"the {word}", "label": word} for word in ("row", "list") * 40]
    data = tmp_path / "train.jsonl"
    data.write_text("\n".join(map(json.dumps, lines)))
    task = (f"--config.model={folder}", f"--config.task.train={data}")
    sizes = ("--config.task.length=16", "--config.train.batch=8")
    found = run_cli("finetune", *task, *sizes, f"--workdir={tmp_path / 'task'}")
    assert found.returncode == 0, found.stderr
    out = tmp_path / "out.jsonl"
    given = (f"--model={tmp_path / 'task'}", f"--input={data}", f"--output={out}")
    found = run_cli("predict", *given)
    assert found.returncode == 0, found.stderr
    assert len(out.read_text().splitlines()) == 80
