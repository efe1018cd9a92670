"""What pip installs: the files of a wheel, and an import beside the checkout."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def built(kind: str, to: Path) -> Path:
    """Builds the "wheel" or the "editable" as pip does; returns its file."""
    pytest.importorskip("hatchling")
    program = f"import hatchling.build as b; print(b.build_{kind}({str(to)!r}))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return to / done.stdout.split()[-1]


def test_a_wheel_has_recipes_templates_and_the_licence(tmp_path):
    with zipfile.ZipFile(built("wheel", tmp_path)) as wheel:
        files = set(wheel.namelist())
        wheel.extractall(tmp_path / "site")
    assert {"plmjax/configs/sweeps/nsp.py", "plmjax/launch/templates/gke.yaml"} < files
    recipes = {str(f.relative_to(ROOT)) for f in ROOT.glob("configs/*/*.py")}
    assert {f"plmjax/{recipe}" for recipe in recipes} < files
    assert any(file.endswith(".dist-info/licenses/LICENSE") for file in files)
    # From an empty folder, as users have it.
    (tmp_path / "empty").mkdir()
    program = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r})\n"
        "from plmjax.cli.recipes import table, resolve\n"
        "from plmjax import config\n"
        "print(table('pretrain')); print(config.load_file(resolve('electra:tiny', "
        "'pretrain'))['name'], config.__file__, 'jax' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path / "empty",
        capture_output=True,
        text=True,
    )
    last = f"electra-tiny {tmp_path}/site/plmjax/config.py False"
    assert done.stdout.splitlines()[-1] == last, done.stderr
    assert "bert_mini" in done.stdout and ":tiny, :small (default)" in done.stdout


def test_the_editable_install_is_imported_beside_the_checkout(tmp_path):
    """To Python, a folder plmjax without __init__.py is a namespace package."""
    with zipfile.ZipFile(built("editable", tmp_path)) as wheel:
        wheel.extractall(tmp_path / "site")
    beside = tmp_path / "beside"
    (beside / "plmjax" / "plmjax").mkdir(parents=True)
    program = (
        f"import site; site.addsitedir({str(tmp_path / 'site')!r}); "
        "import plmjax; print(plmjax.__file__)"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", program],
        cwd=beside,
        capture_output=True,
        text=True,
        env={},
    )
    assert done.stdout == f"{ROOT / 'plmjax' / '__init__.py'}\n", done.stderr
