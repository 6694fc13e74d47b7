#!/bin/sh
# A wheel of gsplat with its kernels compiled, in $SDSEDIT_WHEELS; the published one has none and compiles them where it
# runs, which takes a CUDA toolkit. No GPU is needed here: TORCH_CUDA_ARCH_LIST says which ones to compile for.
set -eu
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
pip="$work/venv/bin/pip"
grep -v '^triton==' constraints.txt > "$work/constraints.txt"
"$pip" install -q -c "$work/constraints.txt" torch numpy setuptools wheel
"$pip" download -q --no-deps --no-build-isolation --no-binary gsplat -c "$work/constraints.txt" -d "$work" gsplat
tar -xzf "$work"/gsplat-*.tar.gz -C "$work"
cd "$work"/gsplat-*/
# PyTorch's headers are C++20 by now.
sed -i 's/-std=c++17/-std=c++20/' setup.py
mkdir -p "$SDSEDIT_WHEELS"
"$pip" wheel -q --no-deps --no-build-isolation -w "$SDSEDIT_WHEELS" .
# A wheel without the compiled module would look as good until somebody edits a scene.
"$work/venv/bin/python" -m zipfile -l "$SDSEDIT_WHEELS"/gsplat-*.whl | grep -q 'gsplat/csrc.*\.so'
