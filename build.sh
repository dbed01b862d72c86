#!/usr/bin/env bash
# Builds the training image: `bash build.sh --help`.
set -euo pipefail

repo=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)

usage() {
    cat <<'EOF'
usage: bash build.sh [--cpu] [further options of `docker build` ...]

Builds the image gpt-oss-grpo for NVIDIA GPUs; --cpu builds the smaller gpt-oss-grpo:cpu with the CPU build of torch.

Environment, all optional:
  IMAGE             name of the image
  EXTRA_PACKAGES    further packages to install, such as "wandb mlflow"
  BASE_IMAGE        a Debian-based image with Python 3.11+ (python:3.11-slim-bookworm)
  DOCKER            the client (docker); it needs BuildKit
  HTTP_PROXY, HTTPS_PROXY, NO_PROXY
  PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, PIP_TRUSTED_HOST
  PIP_FIND_LINKS    a local folder of wheels to take first, or an address
  PIP_CERT, SSL_CERT_FILE   CA bundle of a network that intercepts TLS
  TORCH_CPU_INDEX   address of an index with CPU builds of torch, for --cpu (see docs/docker.md)
pip's settings and the CA bundle are given to the build as secrets. None is stored in the image.
EOF
}

# Ends the script with STATUS after printing each LINE: STATUS, LINE...
die() {
    local status=$1 line
    shift
    for line; do echo "build.sh: $line" >&2; done
    echo "build.sh: To try the project without Docker and without a GPU: bash train.sh --smoke" >&2
    exit "$status"
}
# shellcheck source=container.sh
source "$repo/container.sh"

# What to build
requirements="requirements-gpu.txt"
image=${IMAGE:-gpt-oss-grpo}
case ${1:-} in
    -h | --help)
        usage
        exit 0
        ;;
    --cpu)
        requirements=requirements.txt
        image=${IMAGE:-gpt-oss-grpo:cpu}
        shift
        ;;
esac

# With which client
find_engine
if [[ $engine == apptainer ]]; then
    die 2 "Apptainer does not build from a Dockerfile." \
        "Build with Docker or Podman, here or on another machine, and turn that image into a file:" \
        "docker save $image -o image.tar && $client build $repo/${image//:/-}.sif docker-archive:image.tar"
fi
check_engine
build=("$client" build)
if [[ $engine == docker ]]; then
    if "$client" buildx version >/dev/null 2>&1; then
        build=("$client" buildx build --load)
    elif (($("$client" version --format '{{.Client.Version}}' | cut -d . -f 1) >= 23)); then
        die 2 "this Docker client has no BuildKit." "Install its buildx plugin (docker-buildx-plugin, docker-buildx)," \
            "or name another client, such as the distribution's: DOCKER=/usr/bin/docker bash build.sh"
    fi
    export DOCKER_BUILDKIT=1
fi

# pip's settings and the CA bundle as build secrets, a local folder of wheels as an image
secrets=$(mktemp -d)
wheels=
clean_up() {
    rm -rf -- "$secrets"
    if [[ -n $wheels ]]; then "$client" image rm "$wheels" >/dev/null 2>&1; fi
}
trap clean_up EXIT
options=()
ca=${PIP_CERT:-${SSL_CERT_FILE:-}}
find_links=${PIP_FIND_LINKS:-}
if [[ -d $find_links ]]; then
    # The engine may run on another machine and cannot read this folder, so the wheels travel as an image of their
    # own. In the GPU image pip would prefer a CPU wheel to the CUDA build of the same version, so none goes there.
    exclude=()
    [[ $requirements == requirements.txt ]] || exclude=(--exclude='*+cpu*')
    wheels=gpt-oss-grpo:wheels-$$
    tar -C "$find_links" "${exclude[@]}" -c . | "$client" import - "$wheels" >/dev/null
    options+=(--build-arg "WHEELS_IMAGE=$wheels")
    find_links=
fi
extra_index=${PIP_EXTRA_INDEX_URL:-}
if [[ $requirements == requirements.txt ]]; then extra_index+=" ${TORCH_CPU_INDEX:-}"; fi
{
    echo "[global]"
    setting() { if [[ -n ${2// /} ]]; then echo "$1 = $2"; fi; }
    setting index-url "${PIP_INDEX_URL:-}"
    setting extra-index-url "$extra_index"
    setting trusted-host "${PIP_TRUSTED_HOST:-}"
    setting find-links "$find_links"
    if [[ -s $ca ]]; then echo "cert = /run/secrets/ca"; fi
} >"$secrets/pip.conf"
options+=(--secret "id=pip,src=$secrets/pip.conf")
if [[ -s $ca ]]; then options+=(--secret "id=ca,src=$ca"); fi
for name in HTTP_PROXY HTTPS_PROXY NO_PROXY http_proxy https_proxy no_proxy; do
    # Docker knows these arguments and keeps their values out of the image's history.
    if [[ -n ${!name:-} ]]; then options+=(--build-arg "$name"); fi
done
if [[ -n ${EXTRA_PACKAGES:-} ]]; then options+=(--build-arg "EXTRA_PACKAGES=$EXTRA_PACKAGES"); fi
if [[ -n ${BASE_IMAGE:-} ]]; then options+=(--build-arg "BASE_IMAGE=$BASE_IMAGE"); fi
versions=$(versions_of "$repo/requirements.txt")
if [[ $requirements != requirements.txt ]]; then versions=$(versions_of "$repo/requirements.txt" "$repo/$requirements"); fi
revision=$(git -C "$repo" rev-parse --verify --quiet HEAD || echo unknown)

"${build[@]}" --build-arg "REQUIREMENTS=$requirements" --build-arg "REVISION=$revision" \
    --build-arg "VERSIONS=$versions" "${options[@]}" "$@" --tag "$image" -- "$repo"
echo "Built $image. Next: bash train.sh$([[ $requirements == requirements-gpu.txt ]] || echo ' --cpu')"
