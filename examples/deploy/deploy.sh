#!/usr/bin/env bash
# From a machine with a compiler to one without:
#
#     bash examples/deploy/deploy.sh
#
# Three machines take part, and are folders here: yours, one that builds, and one that has no compiler, an empty
# cache and orders to compile nothing. What you would type on them is printed behind a $. About half a minute.
set -euo pipefail

example=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-$(command -v python3)}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
mkdir "$folder/home"
cp "$example/program.py" "$folder"
cd "$folder"

step() { printf '\n== %s\n' "$1"; }
show() {
    local words=${*//"$python"/python}
    printf '$ %s\n' "${words//"$folder/"/}"
}
run() { show "$@" && "$@"; }
orchard-jit() { "$python" -m orchard_jit "$@"; }

# The same on the last machine: variables, then a command. Its packages are ours, and what pip puts into `site`.
there() {
    show "$@"
    env -i HOME="$folder/home" PATH="$folder/home" PYTHONPATH="$folder/site:${PYTHONPATH:-}" \
        ORCHARD_JIT_OFFLINE=1 "$@"
}

step "Your machine: which kernels does the program use?"
run orchard-jit record --out kernels.toml -- "$python" program.py
cat kernels.toml

step "The machine that builds: compile them, and pack them into one file"
export ORCHARD_JIT_CACHE_DIR="$folder/build"
run orchard-jit prebuild kernels.toml
run orchard-jit export kernels.tar.gz

step "The machine without a compiler: as it is, the program cannot run"
if there "$python" program.py 2> refusal.txt; then
    echo "It ran all the same: kernels have been found that should not be there." && exit 1
fi
sed -n '/Error: /,$p' refusal.txt

step "With the file: import it into a folder, and name the folder"
there "$python" -m orchard_jit import kernels.tar.gz --into "$folder/kernels"
there ORCHARD_JIT_PREBUILT_DIRS="$folder/kernels" "$python" program.py

step "Or with a package, which is found by itself"
run orchard-jit wheel --out dist
run "$python" -m pip install --quiet --no-index --no-deps --target site dist/*.whl
there "$python" program.py
