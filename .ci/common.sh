# What .ci/run and .ci/nightly share: one fresh environment, steps and their times.
# Needs Python 3.11+ (PYTHON=... chooses one) and the package registry; no accelerator.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

work=$(mktemp -d)
bin="$work/venv/bin"
export PIP_DISABLE_PIP_VERSION_CHECK=1
# What one step of tests compiles, the next one need not.
export JAX_COMPILATION_CACHE_DIR="$work/xla" JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0
# Bytecode is kept, too, but only of what is imported: a tenth of what pip would compile.
export PYTHONPYCACHEPREFIX="$work/pyc" PYTHONDONTWRITEBYTECODE=
"${PYTHON:-python3}" -m venv "$work/venv"
trap 'code=$?; "$bin/python" .ci/times.py "$work" "$SECONDS"; rm -rf "$work"; exit $code' EXIT

# step NAME COMMAND [ARGUMENT ...]: runs it, notes how long it took, gives its exit code.
step() {
  local name=$1 begun=$SECONDS code=0
  shift
  printf '\n== %s\n' "$name"
  "$@" || code=$?
  printf '%s\t%s\n' "$((SECONDS - begun))" "$name" >>"$work/steps.tsv"
  return "$code"
}

# tests NAME [ARGUMENT ...]: a step of pytest, whose tests' times are noted, too.
tests() {
  local name=$1
  shift
  step "$name" "$bin/pytest" -q --junitxml="$work/$name.xml" "$@"
}

# torch comes first, and by its version: another choice of pip's brings gigabytes of CUDA.
# The default tests run beside it without it (tests/conftest.py).
install() {
  "$bin/pip" install -q --no-compile torch==2.13.0 &&
    "$bin/pip" install -q --no-compile -e ".[test,dev,peer]"
}

# For the tests marked `topology`.
compilers() {
  "$bin/pip" install -q --no-compile -e ".[topology]"
}
