#!/usr/bin/env bash
# Collect all that an installation needs in one folder, to carry to a cluster without internet.
#
# usage: scripts/make_wheelhouse.sh [FOLDER] [TORCH]
#   FOLDER  where to (wheelhouse)
#   TORCH   PyTorch's build: cpu, cu130, ...; left out: the one that pip's own index has
# Run it with the Python version and on the kind of system (Linux, x86_64) that the cluster has; PYTHON=python3.12 names
# another Python. There:
#   python3 -m venv polarice && polarice/bin/pip install --no-index --find-links FOLDER 'polarice[mpi]'
set -euo pipefail
cd "$(dirname "$0")/.."

folder=${1:-wheelhouse}
torch=${2:-}
python=${PYTHON:-python3}
index=()
[ -z "$torch" ] || index=(--index-url "https://download.pytorch.org/whl/$torch" --extra-index-url https://pypi.org/simple)
extras=mpi
[[ $torch != cu* ]] || extras=mpi,gpu
pip=("$python" -m pip --disable-pip-version-check)

mkdir -p "$folder"
rm -rf build "$folder"/polarice-*.whl
"${pip[@]}" wheel --quiet --no-deps --wheel-dir "$folder" .
"${pip[@]}" download --quiet -c constraints.txt --dest "$folder" ${index[@]+"${index[@]}"} torch
"${pip[@]}" download --quiet -c constraints.txt --dest "$folder" --find-links "$folder" "polarice[$extras]"
cp constraints.txt LICENSE "$folder"
echo "$folder: $(find "$folder" -name '*.whl' | wc -l) wheels, $(du -sh "$folder" | cut -f1)"
echo "there: python3 -m venv polarice && polarice/bin/pip install --no-index --find-links $folder 'polarice[$extras]'"
