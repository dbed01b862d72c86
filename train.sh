#!/usr/bin/env bash
# Runs the training job, or another script of this folder: `bash train.sh --help`.
set -euo pipefail

repo=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)
min_driver=580 # the oldest NVIDIA driver that runs the CUDA 13 build of torch

usage() {
    cat <<'EOF'
usage: bash train.sh [--local | --cpu | --smoke] [--dry-run] [--config FILE] [key.path=value ...]
       bash train.sh [--local | --cpu | --smoke] SCRIPT.py [arguments ...]
       bash train.sh --setup [dev | gpu]

Trains with config.yaml in the container that build.sh made, on the NVIDIA GPUs.

  --cpu           the container, without a GPU
  --local         no Docker: in .venv, on the GPU where there is one
  --smoke         no Docker and no GPU: trains the embedded tiny model (configs/tiny.yaml) in .venv on the CPU
  --setup         only create or update .venv (dev: for the tests; gpu: for an NVIDIA GPU)
  --dry-run       check the config, show prompts and batches, estimate the GPU memory; load and write nothing
  --network       the job in the container keeps the network and your tokens (see below)
  --gpus N        train on N GPUs, a process for each (all that are visible); without a GPU, in N processes
  --config FILE   merged over config.yaml (--smoke: and configs/tiny.yaml), and over earlier ones; sought from here,
                  then in the repository
  key.path=value  overrides one key, e.g. grpo.max_steps=1
  SCRIPT.py       run this script of the repository in place of train.py

  bash train.sh --smoke
  bash train.sh grpo.max_steps=50 model.name=/models/my-model
  bash train.sh --cpu --config configs/tiny.yaml grpo.max_steps=2
  bash train.sh check.py
  bash train.sh evaluate.py base gpt-oss-grpo
  GPUS=0,1 OUTPUT_DIR=/data/run7 MEMORY=64g bash train.sh

In the container the repository is read-only, and an existing absolute path given as a value is mounted read-only.
A first container, the fetch step, has the network and your tokens, and downloads model and data. The job itself has
neither, unless an online tracker, push_to_hub, an HTTP judge or several nodes need it; a line then says so.
Environment, with defaults:
  OUTPUT_DIR       outputs of a container (gpt-oss-grpo in the repository; without Docker, set grpo.output_dir)
  CACHE_DIR        compiled kernels and the like (~/.cache/gpt-oss-grpo)
  HF_HOME          Hugging Face cache: models and data sets (~/.cache/huggingface)
  HF_TOKEN, HF_TOKEN_PATH        for gated models; a token file is the safer way. Optional.
  HF_HUB_OFFLINE, WANDB_*, ...   handed to the container when set; secrets only to what needs them
  PASS_ENV         names of further variables for the fetch step and for what needs the network, split at spaces
  GPUS             all, or a list such as 0,1 (all)
  SLURM_STEP_NUM_NODES, PET_NNODES, ...   set by SLURM and Kubeflow Trainer: the nodes that train together
  MIN_FREE_GB      free disk to insist on (GPU: 20; --cpu, --smoke: 1; to install: 12 GPU, 8 CPU, 3 with TORCH_CPU_INDEX)
  TORCH_CPU_INDEX  a pip index with CPU builds of torch, for .venv, such as https://download.pytorch.org/whl/cpu
  PYTHON           the Python 3.11+ that .venv is made with (the first suitable python3*)
  IMAGE, DOCKER    image (gpt-oss-grpo) and client: docker, podman or apptainer (the first that is there)
  MEMORY           main memory that the container may use, such as 64g (nine tenths of the machine's)
  DOCKER_ARGS      further options of `docker run`, split at spaces

Exit status: that of the script, or of the fetch step if that fails; 2 wrong usage, or something missing here (Docker, image, GPU, Python);
4 a folder cannot be written or the disk is too full; 1 the installation failed.
EOF
}

# Ends the script with STATUS after printing each LINE: STATUS, LINE...
die() {
    local status=$1 line
    shift
    for line; do echo "train.sh: $line" >&2; done
    if [[ -n $hint ]]; then echo "train.sh: $hint" >&2; fi
    exit "$status"
}

# ---- what this machine has

# Makes FOLDER, checks that it can be written and has space, and prints its absolute path: FOLDER, GB NEEDED, WAY OUT
usable() {
    local dir=$1 need_gb=${MIN_FREE_GB:-$2} way_out=$3 probe free_gb
    if ! { mkdir -p -- "$dir" && probe=$(mktemp -- "$dir/.probe.XXXXXX"); } 2>/dev/null; then
        die 4 "cannot write to the folder $dir." "Correct its owner or permissions, or use $way_out."
    fi
    rm -f -- "$probe"
    free_gb=$(($(stat -f -c '%a * %S / 10**9' -- "$dir")))
    if ((free_gb < need_gb)); then
        die 4 "only $free_gb GB are free in $dir, and this needs about $need_gb GB." \
            "Free some, use $way_out, or set MIN_FREE_GB if less will do."
    fi
    (cd -- "$dir" && pwd -P)
}

# Prints the GB that the Hugging Face cache must have free: enough for the default model, unless it holds one already.
gb_for_model() {
    if [[ -n $dry_run ]] || compgen -G "$hf_home/hub/models--*" >/dev/null; then
        echo 1
    else
        echo 20
    fi
}

has_gpu() { [[ $(nvidia-smi -L 2>/dev/null) == *GPU* ]]; }

check_driver() {
    local version
    version=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null) || return 0
    if [[ $version =~ ^([0-9]+)\. ]] && ((BASH_REMATCH[1] < min_driver)); then
        die 2 "the NVIDIA driver here is ${version%%$'\n'*}, and torch for CUDA 13 needs $min_driver or newer." \
            "Update the driver."
    fi
}

find_python() {
    local python candidates=(python3 python3.13 python3.12 python3.11)
    [[ -z ${PYTHON:-} ]] || candidates=("$PYTHON")
    for python in "${candidates[@]}"; do
        "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue
        "$python" -c 'import ensurepip, venv' 2>/dev/null ||
            die 2 "$python cannot make virtual environments." "On Debian and Ubuntu: sudo apt-get install python3-venv"
        echo "$python"
        return
    done
    die 2 "found no Python 3.11 or newer (tried: ${candidates[*]})." "Install one, or name it with PYTHON=/path/to/python3."
}

# ---- .venv

venv_works() { .venv/bin/python -c 'import pip' 2>/dev/null; }

# Whether .venv has what STAMP stands for: STAMP
is_installed() { grep -qsxF -- "$1" .venv/installed && venv_works; }

# Brings .venv up to date with requirements[-KIND].txt: KIND (empty, dev or gpu)
#
# A finished installation leaves a line in .venv/installed. One that stopped half-way leaves .venv/installing, and
# .venv is then created again. All of it is a subshell, so that the lock is free when the function ends.
set_up() (
    local file stamp base_python need_gb=8 pip_options=()
    cd -- "$repo"
    file=requirements${1:+-$1}.txt
    stamp="$file $(cat -- requirements.txt requirements.lock "$file" "${file%.txt}.lock" | sha256sum | cut -c 1-64)"
    if is_installed "$stamp"; then return; fi

    # What can be refused at once
    base_python=$(find_python)
    if [[ $1 == gpu ]]; then
        need_gb=12
    elif [[ -n ${TORCH_CPU_INDEX:-} ]]; then
        pip_options=(--extra-index-url "$TORCH_CPU_INDEX")
        need_gb=3
    fi
    usable . "$need_gb" "a copy of the repository elsewhere" >/dev/null

    # One installation at a time
    exec 9>.venv.lock
    if ! flock -n 9; then
        echo "Waiting for the installation that another process has begun ..."
        flock 9
        if is_installed "$stamp"; then return; fi
    fi

    if [[ -e .venv/installing ]] || ! venv_works; then create_venv "$base_python"; fi
    install_requirements "$file" "$stamp" "${pip_options[@]}"
)

create_venv() { # PYTHON
    echo "Creating $repo/.venv with $("$1" -V) ..."
    "$1" -m venv --clear .venv ||
        die 1 "could not create $repo/.venv (see above)." "Correct what stands above, then run the same command again."
}

# Installs FILE into .venv, then writes STAMP down: FILE, STAMP, OPTIONS OF PIP...
install_requirements() {
    local file=$1 stamp=$2 python=.venv/bin/python finished began=$SECONDS
    shift 2
    finished=$(cat .venv/installed 2>/dev/null || true)
    touch .venv/installing
    rm -f .venv/installed
    if [[ $file == requirements-gpu.txt ]] && "$python" -m pip freeze | grep -q '^torch==.*+cpu'; then
        "$python" -m pip uninstall --yes torch # pip would take the CPU build for the same version
    fi
    bash install.sh "$python" "$file" "$@" ||
        die 1 "the installation of $file failed (see above)." \
            "Check the network, or the mirror that pip is configured with, then run the same command again."
    printf '%s\n' "$finished" "$stamp" >.venv/installed
    rm .venv/installing
    echo "Installed $file in $((SECONDS - began)) s."
}

# ---- the command line

# Sets mode, kind, configs, script, dry_run and args from the words of the command line.
parse_arguments() {
    while (($#)); do
        case $1 in
            -h | --help)
                usage
                exit 0
                ;;
            --local | --cpu | --smoke | --setup)
                [[ $mode == docker ]] || die 2 "--$mode and $1 exclude each other (see --help)."
                mode=${1#--}
                ;;
            --config)
                (($# > 1)) || die 2 "--config needs a file name (see --help)."
                configs+=("$2")
                shift
                ;;
            --config=*) configs+=("${1#*=}") ;;
            --dry-run) dry_run=--dry-run ;;
            --network) network=1 ;;
            --gpus)
                (($# > 1)) || die 2 "--gpus needs a number (see --help)."
                gpus=$2
                shift
                ;;
            --gpus=*) gpus=${1#*=} ;;
            -*) die 2 "there is no option $1 (see --help)." ;;
            *=*) args+=("$1") ;;
            *.py)
                script=$1
                shift
                args+=("$@")
                break
                ;;
            dev | gpu)
                [[ $mode == setup ]] || die 2 "'$1' goes with --setup only (see --help)."
                kind=$1
                ;;
            *) die 2 "'$1' is neither an option, nor key.path=value, nor a script (see --help)." ;;
        esac
        shift
    done
}

# Sets config to the absolute path of the file $1, or to that from the root of the repository if it is in it.
find_config() {
    local given=$1
    config=$given
    [[ -e $config ]] || config=$repo/$config
    [[ -e $config ]] || die 2 "there is no config file $given (sought in $PWD and $repo)."
    config=$(cd -- "$(dirname -- "$config")" && pwd -P)/$(basename -- "$config")
    [[ $script != train.py ]] || config=${config#"$repo/"}
}

# Makes a task.data or task.type absolute if it means files outside the repository, else relative to that: the script
# and the container start elsewhere.
find_files() {
    local i key path folder
    for i in "${!args[@]}"; do
        case ${args[i]} in
            task.data=[!/]* | task.type=*.py) ;;
            *) continue ;;
        esac
        key=${args[i]%%=*}
        path=${args[i]#*=}
        # shellcheck disable=SC2088 # behind `=` the shell has left ~ as it is
        if [[ $path == "~/"* ]]; then
            path=$HOME/${path#"~/"}
        elif [[ $path != /* ]]; then
            folder=$PWD
            while [[ $path == ./* || $path == ../* ]]; do
                if [[ $path == ../* ]]; then folder=${folder%/*}; fi
                path=${path#*/}
            done
            path=$folder/$path
        fi
        if compgen -G "$path" >/dev/null; then args[i]=$key=${path#"$repo/"}; fi
    done
}

# Completes args, the words that the script is given.
complete_arguments() {
    [[ -f $repo/$script ]] || die 2 "there is no script $script in $repo."
    local i
    for ((i = ${#configs[@]} - 1; i >= 0; i--)); do
        find_config "${configs[i]}"
        args=(--config "$config" "${args[@]}")
    done
    find_files
    if [[ -n $dry_run ]]; then
        [[ $script == train.py ]] || die 2 "--dry-run goes with train.py only (see --help)."
        args=(--dry-run "${args[@]}")
    fi
    if [[ -n $gpus ]]; then
        [[ $script == train.py ]] || die 2 "--gpus goes with train.py only (see --help)."
        [[ $gpus =~ ^[1-9][0-9]*$ ]] || die 2 "--gpus takes a number above 0, not '$gpus'."
        args=(--gpus "$gpus" "${args[@]}")
    fi
    if [[ $mode == smoke && $script == train.py ]]; then
        args=(--config configs/tiny.yaml "${args[@]}")
    fi
}

# Sets output to the grpo.output_dir of the command line; empty where it names none.
find_output() {
    local arg
    for arg in "${args[@]}"; do
        case $arg in grpo.output_dir=*) output=${arg#*=} ;; esac
    done
}

# ---- without Docker

# Runs the script with .venv in place of this shell.
run_locally() {
    export START_COMMAND="bash train.sh --$mode" # for the commands that train.py shows at its end
    export START_FOLDER=$PWD # where train.py looks for data first
    # train.py writes below the repository; other scripts read and write files where the user is.
    [[ $script != train.py ]] || cd -- "$repo"
    # With a config file, train.py itself finds the output folder that the file names.
    if [[ $script == train.py && -z $dry_run && (-n $output || ${#configs[@]} == 0) ]]; then
        usable "${output:-gpt-oss-grpo}" 1 grpo.output_dir=/path >/dev/null
    fi
    if [[ $mode == smoke ]]; then
        export CUDA_VISIBLE_DEVICES=
        set_up ""
    elif has_gpu; then
        check_driver
        usable "$hf_home" "$(gb_for_model)" HF_HOME=/path >/dev/null
        set_up gpu
    else
        usable "$hf_home" 1 HF_HOME=/path >/dev/null
        set_up ""
    fi
    [[ $script == train.py ]] || script=$repo/$script
    exec "$repo/.venv/bin/python" "$script" "${args[@]}"
}

# ---- in a container

# Mounts the repository and the folders that the container writes to.
add_folders() {
    local need_gb=1 output_dir cache_dir
    if [[ $mode == docker ]]; then need_gb=$(gb_for_model); fi
    output_dir=$(usable "${OUTPUT_DIR:-$repo/gpt-oss-grpo}" 1 OUTPUT_DIR=/path)
    cache_dir=$(usable "${CACHE_DIR:-$caches/gpt-oss-grpo}" 1 CACHE_DIR=/path)
    hf_home=$(usable "$hf_home" "$need_gb" HF_HOME=/path)
    # Docker would make these two mount points itself, but as root.
    mkdir -p -- "$repo/gpt-oss-grpo" "$cache_dir/huggingface" || die 4 "cannot make the mount points (see above)."
    mount "$repo" /app readonly
    mount "$output_dir" /app/gpt-oss-grpo
    mount "$cache_dir" /cache
    mount "$hf_home" /cache/huggingface
    case $output in
        /*)
            output=$(usable "$output" 1 grpo.output_dir=/path)
            mount "$output" "$output"
            ;;
        "" | gpt-oss-grpo | gpt-oss-grpo/*) ;;
        *) die 2 "grpo.output_dir=$output: in a container, give an absolute path or one below gpt-oss-grpo/." ;;
    esac
}

# Mounts each absolute path that is given as a value, read-only, at its own place; of a glob for data, the folder
# that it begins with.
add_given_paths() {
    local arg path
    for arg in "${args[@]}"; do
        path=${arg#*=}
        if [[ $arg == task.data=/*[*?[]* && ! -e $path ]]; then
            path=${path%%[*?[]*}
            path=${path%/*}
        fi
        if [[ $arg != grpo.output_dir=* && $path == /* && -e $path ]]; then mount "$path" "$path" readonly; fi
    done
}

# Sets reasons: kinds of what the job needs the network for. Runs the fetch step where that has to say so.
decide_network() {
    local need why=()
    if [[ -n $network ]]; then
        reasons+=(fetch)
        why+=("--network was given")
    elif [[ -n $dry_run ]]; then
        reasons+=(fetch)
        why+=("a dry run may download the tokenizer")
    elif [[ $script == export.py ]]; then
        reasons+=(fetch)
        why+=("export.py may download and upload, and runs nothing that a model wrote")
    elif grep -q -- --fetch "$repo/$script"; then
        fetch "$script" "${args[@]}"
        for need in "${needs[@]}"; do
            reasons+=("${need%%$'\t'*}")
            why+=("${need#*$'\t'}")
        done
    fi
    if ((${SLURM_STEP_NUM_NODES:-1} > 1 || ${PET_NNODES:-1} > 1)); then
        reasons+=(nodes)
        why+=("several nodes train together")
    fi

    if ((${#reasons[@]})); then
        need=$(printf '%s; ' "${why[@]}")
        echo "job: with the network: ${need%; }" >&2
    else
        echo "job: without network and token (--network gives it both)" >&2
    fi
}

# Runs the script in a container, after a first container has fetched what it needs.
start_container() {
    find_engine
    check_engine
    if [[ -n ${HF_TOKEN_PATH:-} && ! -r $HF_TOKEN_PATH ]]; then
        die 2 "cannot read the file that HF_TOKEN_PATH names."
    fi
    if [[ $mode == docker ]]; then check_driver; fi
    choose_image "$mode"

    # What both containers get
    begin_run
    if [[ $mode == docker ]]; then
        add_gpus
        run+=(--env "START_COMMAND=bash train.sh")
    else
        run+=(--env CUDA_VISIBLE_DEVICES= --env "START_COMMAND=bash train.sh --cpu")
    fi
    if [[ -n ${MIN_FREE_GB:-} ]]; then run+=(--env "MIN_FREE_GB=$MIN_FREE_GB"); fi
    add_folders
    add_given_paths
    make_secrets

    decide_network
    become_job "${reasons[@]}" -- "$script" "${args[@]}"
}

# ---- from the command line to the run

hint=
mode=docker # or local, cpu, smoke, setup
kind=
configs=()
script=train.py
dry_run=
gpus=
args=()
output=
caches=${XDG_CACHE_HOME:-${HOME:-/tmp}/.cache}
hf_home=${HF_HOME:-$caches/huggingface}
network= # whether the job is to have the network in any case
reasons=() # kinds of what the job needs the network for
# shellcheck source=container.sh
source "$repo/container.sh"
declare -A mounted=() # what is mounted already, by its place in the container

parse_arguments "$@"
if [[ $mode == setup ]]; then
    set_up "$kind"
    exit
fi
complete_arguments
find_output
if [[ $mode != smoke ]]; then hint="To try it without Docker and without a GPU: bash train.sh --smoke"; fi
case $mode in
    local | smoke) run_locally ;;
    docker | cpu) start_container ;;
esac
