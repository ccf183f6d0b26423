#!/bin/sh
# Make a folder with an ARM64 Linux's Python, numpy and ONNX Runtime for tests/test_arm64.py. No root, no binfmt, no container:
#     tests/arm64.sh FOLDER && EDGEKIT_TEST_ARM64=FOLDER pytest tests/test_arm64.py
# Needs Debian 12's apt-get, dpkg-deb and qemu-user-static. Its qemu (7.2) runs ONNX Runtime up to 1.26; from 1.28 on
# the import crashes there, and needs the qemu 10 of Debian 13.
set -eu
folder=$(mkdir -p "$1" && cd "$1" && pwd)
runtime=${2:-onnxruntime==1.23.2}
mkdir -p "$folder/state/lists/partial" "$folder/cache/archives/partial" "$folder/debs" "$folder/root" "$folder/site"
: >"$folder/status"
apt() {
    apt-get -q -o "Dir::State=$folder/state" -o "Dir::State::status=$folder/status" -o "Dir::Cache=$folder/cache" \
        -o APT::Architecture=arm64 -o APT::Architectures=arm64 "$@"
}
apt update
(cd "$folder/debs" && apt download libc6 libstdc++6 libgcc-s1 zlib1g libexpat1 libssl3 libffi8 libbz2-1.0 liblzma5 \
    libuuid1 python3.11-minimal libpython3.11-minimal libpython3.11-stdlib)
for package in "$folder"/debs/*.deb; do dpkg-deb -x "$package" "$folder/root"; done
python3 -m pip download -q --only-binary=:all: --no-deps --dest "$folder/wheels" --implementation cp \
    --python-version 3.11 --abi cp311 --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 \
    --platform manylinux_2_17_aarch64 --platform manylinux2014_aarch64 'numpy<2.3' "$runtime"
for wheel in "$folder"/wheels/*.whl; do python3 -m zipfile -e "$wheel" "$folder/site"; done
echo "$folder"
