#!/usr/bin/env bash
# Installs a set of pinned packages, for train.sh and the Dockerfile: bash install.sh PYTHON FILE [options of pip ...]
#
#   PYTHON   of the environment
#   FILE     requirements.txt, requirements-gpu.txt or requirements-dev.txt; the last two add to the first
#
# Beside each FILE lies a lock with the sha256 of every package. Nothing else is installed, with one exception: without
# CUDA, torch may be a build for CPUs from another index (TORCH_CPU_INDEX), and so is installed by its version alone.
set -euo pipefail

python=$1
file=$2
shift 2
options=("$@")
uses_cuda=
[[ $file != requirements-gpu.txt ]] || uses_cuda=1
files=(requirements.txt)
[[ $file == requirements.txt ]] || files+=("$file")
locks=("${files[@]/%.txt/.lock}")

pins() { cat -- "$@" | grep -oE '^[A-Za-z0-9._-]+==[^ ]+' | sort; }

# Says what is about to be downloaded.
tell_size() {
    local what="about 1.8 GB on the disk with the CPU build of PyTorch, 6 GB with PyPI's CUDA build"
    if [[ -n $uses_cuda ]]; then what="PyTorch with CUDA: about 6 GB on the disk"; fi
    echo "Installing the $(pins "${files[@]}" | wc -l) packages of $file: $what."
}

# Prints every 10 s how far the installation has come, because pip and uv write nothing while they unpack: FOLDER
show_progress() {
    trap 'kill "$!" 2>/dev/null; exit' TERM
    while kill -0 $$ 2>/dev/null; do
        sleep 10 &
        wait "$!"
        echo "... $SECONDS s: $1 holds $(du -sm -- "$1" 2>/dev/null | cut -f 1) MB"
    done
}

# Installs with uv where there is one, because it is faster, else with pip: WORDS OF pip install...
install() {
    if command -v uv >/dev/null; then
        uv pip install --python "$python" --no-config --index-strategy unsafe-best-match "${settings[@]}" "$@" && return
        echo "uv could not install this (see above); trying pip ..."
    fi
    "$python" -m pip install --disable-pip-version-check "$@"
}

# Sets settings: pip's settings as words for uv, which does not read them.
read_pip_settings() {
    local key values value
    settings=()
    while IFS='=' read -r key values; do
        for value in ${values//\'/}; do
            case ${key##*.} in
                index-url) settings+=(--index-url "$value") ;;
                extra-index-url) settings+=(--extra-index-url "$value") ;;
                find-links) settings+=(--find-links "$value") ;;
                trusted-host) settings+=(--allow-insecure-host "$value") ;;
                cert) if [[ -z ${SSL_CERT_FILE:+set} ]]; then export SSL_CERT_FILE=$value; fi ;;
            esac
        done
    done < <("$python" -m pip config list 2>/dev/null)
}

tell_size
show_progress "$(dirname -- "$(dirname -- "$python")")" &
progress=$!
trap 'kill "$progress" 2>/dev/null || true; rm -f -- "${hashed:-}"' EXIT
if command -v uv >/dev/null; then read_pip_settings; fi

if [[ $(pins "${files[@]}") != "$(pins "${locks[@]}")" ]]; then
    echo "note: ${locks[*]} hold other versions than ${files[*]}, so no hashes are checked; see docs/docker.md"
    # requirements-gpu.txt is complete, and its head says why its packages' own wishes do not count.
    install ${uses_cuda:+--no-deps} "${options[@]}" -r "$file"
    exit
fi

hashed=$(mktemp)
cat -- "${locks[@]}" >"$hashed"
if [[ -n $uses_cuda ]]; then
    install --no-deps --require-hashes "${options[@]}" -r "$hashed"
    exit
fi
# Everything but torch: a lock's entry begins at the margin.
awk '/^[^ ]/ { wanted = !/^torch==/ } wanted' "${locks[@]}" >"$hashed"
install --no-deps --require-hashes -r "$hashed"
install "${options[@]}" "$(grep -oE '^torch==[^ ]+' requirements.lock)"
