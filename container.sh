# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154 # what train.sh and this file set for each other
# How train.sh and build.sh speak to Docker, Podman or Apptainer. They source this file and define `die`.
#
# A job runs in two containers. The fetch step has the network and the tokens, and downloads what the job needs. The
# job itself has neither, unless the fetch step names a reason: programs that a model wrote run beside it.

# ---- the engine

# Sets client, the program to call, and engine: docker, podman or apptainer.
find_engine() {
    local name names=(docker podman apptainer singularity)
    if [[ -n ${DOCKER:-} ]]; then names=("$DOCKER"); fi
    for name in "${names[@]}"; do
        if command -v "$name" >/dev/null; then
            client=$name
            break
        fi
    done
    [[ -n $client ]] || die 2 "there is no container client (sought: ${names[*]})." \
        "Install Docker Engine, Podman or Apptainer, or name a client with DOCKER=."
    # A program of the name docker may be Podman's.
    case $("$client" --version 2>/dev/null) in
        podman*) engine=podman ;;
        apptainer* | singularity*) engine=apptainer ;;
        *) engine=docker ;;
    esac
}

check_engine() {
    local error
    local way_out="run it as the user whose containers these are, and see: podman info"
    [[ $engine != apptainer ]] || return 0
    if error=$("$client" version --format '{{.Server.Version}}' 2>&1 >/dev/null); then return; fi
    if [[ $engine == docker ]]; then
        way_out="Start it (sudo systemctl start docker); if permission is denied, join the group: "
        way_out+="sudo usermod -aG docker \$USER"
    fi
    die 2 "no container engine answers ($client): $error" "$way_out"
}

# ---- the image

has_image() {
    if [[ $engine == apptainer ]]; then
        [[ -f $1 ]]
    else
        "$client" image inspect "$1" >/dev/null 2>&1
    fi
}

# Sets image. MODE is cpu, or docker for the image with CUDA.
choose_image() { # MODE
    local build="build.sh" default=gpt-oss-grpo cpu=gpt-oss-grpo:cpu
    if [[ $engine == apptainer ]]; then
        default=$repo/gpt-oss-grpo.sif
        cpu=$repo/gpt-oss-grpo-cpu.sif
    fi
    image=${IMAGE:-$default}
    if [[ $1 == cpu ]]; then
        build="build.sh --cpu"
        if [[ -z ${IMAGE:-} ]] && has_image "$cpu"; then image=$cpu; fi
    fi
    has_image "$image" || die 2 "there is no image $image." "Build it: bash $build"
    [[ $engine == apptainer ]] || check_age "bash $build"
}

# A short name for the pinned versions in FILES; comments do not count.
versions_of() { # FILES...
    cat -- "$@" | grep -oE '^[A-Za-z0-9._-]+==[^ ]+' | sort | sha256sum | cut -c 1-16
}

# Says when the image was built from other versions than requirements*.txt asks for now.
check_age() { # COMMAND THAT BUILDS IT
    local built now
    built=$("$client" image inspect --format '{{index .Config.Labels "gpt-oss-grpo.versions"}}' "$image" 2>/dev/null)
    now=$(versions_of "$repo/requirements.txt")
    if [[ $built == "$now" || $built == $(versions_of "$repo"/requirements{,-gpu}.txt) ]]; then return; fi
    echo "train.sh: warning: the image $image was built from other versions than requirements*.txt asks for." >&2
    echo "train.sh: Bring it up to date: $1" >&2
}

# ---- what a container may do

# Begins run, the words of `docker run`: no root file system to write to, no capabilities, bounded processes and memory.
begin_run() {
    if [[ $engine == apptainer ]]; then
        # Its root file system is read-only and /tmp in memory; the scheduler bounds the rest.
        run=(exec --containall --cleanenv --no-privs --pwd /app)
        return
    fi
    run=(run --rm --stop-timeout 300 --shm-size 8g)
    run+=(--read-only --tmpfs '/tmp:exec,mode=1777' --cap-drop ALL --security-opt no-new-privileges)
    if [[ $engine == docker ]] || compgen -G '/usr/libexec/podman/catatonit' >/dev/null ||
        command -v catatonit >/dev/null; then
        run+=(--init) # Podman borrows its init from catatonit
    fi
    add_limits
    add_user
}

# Bounds memory and processes, so that a job that needs too much ends, and not something else on this machine.
add_limits() {
    local memory=${MEMORY:-} total controllers="memory pids"
    if [[ $engine == podman ]]; then
        total=$("$client" info --format '{{.Host.MemTotal}}' 2>/dev/null)
        controllers=$("$client" info --format '{{.Host.CgroupControllers}}' 2>/dev/null)
    else
        total=$("$client" info --format '{{.MemTotal}}' 2>/dev/null)
    fi
    if [[ -z $memory && $total =~ ^[1-9][0-9]*$ ]]; then memory=$((total * 9 / 10)); fi
    if [[ -n $memory && $controllers == *memory* ]]; then run+=(--memory "$memory"); fi
    if [[ $controllers == *pids* ]]; then run+=(--pids-limit 8192); fi
}

# Runs as the user who started this script, so that the outputs belong to that user.
add_user() {
    local user
    user=$(id -u):$(id -g)
    if [[ $engine == podman ]]; then
        # Without root, Podman gives the user another number in the container, unless told not to.
        if [[ $("$client" info --format '{{.Host.Security.Rootless}}' 2>/dev/null) == true ]]; then
            run+=(--userns=keep-id)
        fi
    elif [[ $("$client" info --format '{{.SecurityOptions}}' 2>/dev/null) == *rootless* ]]; then
        user=0:0 # In rootless Docker, root in the container is the user outside.
    fi
    run+=(--user "$user")
}

# Adds the GPUs, after trying them in a container that does nothing.
add_gpus() {
    local gpus=${GPUS:-all} error words=() gpu
    case $engine in
        apptainer)
            run+=(--nv)
            if [[ $gpus != all ]]; then run+=(--env "CUDA_VISIBLE_DEVICES=$gpus"); fi
            return
            ;;
        podman)
            for gpu in ${gpus//,/ }; do words+=(--device "nvidia.com/gpu=$gpu"); done
            ;;
        docker)
            [[ $gpus == all ]] || gpus="\"device=$gpus\"" # a list has commas: Docker reads the value as CSV
            words=(--gpus "$gpus")
            ;;
    esac
    run+=("${words[@]}")
    if error=$("$client" run --rm --network none --entrypoint true "${words[@]}" "$image" 2>&1); then return; fi
    case $error in
        *"could not select device driver"* | *"unknown or invalid runtime"*)
            die 2 "Docker has no NVIDIA runtime." "Install the NVIDIA Container Toolkit, then:" \
                "sudo nvidia-ctk runtime configure --runtime=docker && sudo systemctl restart docker" \
                "To run the container without a GPU: bash train.sh --cpu"
            ;;
        *nvidia.com/gpu*)
            die 2 "Podman knows no NVIDIA device: $error" "Install the NVIDIA Container Toolkit, then:" \
                "sudo nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml" \
                "To run the container without a GPU: bash train.sh --cpu"
            ;;
        *nvidia* | *CDI*)
            die 2 "the NVIDIA runtime found no usable driver or GPU (GPUS=${GPUS:-all}): $error" \
                "Install or repair the driver ($min_driver or newer) until nvidia-smi answers." \
                "To run the container without a GPU: bash train.sh --cpu"
            ;;
        *) die 2 "a container on the GPU did not start: $error" ;;
    esac
}

# The value of --mount, quoted as CSV for commas in paths: SOURCE, TARGET, "readonly" or nothing
bind() {
    if [[ $engine == apptainer ]]; then
        echo "type=bind,\"source=$1\",\"destination=$2\"${3:+,ro}"
    else
        echo "type=bind,\"source=$1\",\"target=$2\"${3:+,$3}"
    fi
}

# Mounts SOURCE at TARGET, once: SOURCE, TARGET, "readonly" or nothing
mount() {
    [[ -z ${mounted[$2]:-} ]] || return 0
    mounted[$2]=1
    run+=(--mount "$(bind "$@")")
}

# ---- network and secrets

# Names of the user's variables that REASONS need, one a line. Secrets are among them only where one needs them.
#
# REASONS are words: fetch (everything), look (the same without a network), hub, wandb, mlflow, judge, nodes.
variables_for() { # REASONS...
    local reason wanted further=${PASS_ENV:-} secret='.*_(TOKEN|KEY|PASSWORD|USERNAME)'
    local plain='HF_HUB_[A-Z_]+|HF_DATASETS_OFFLINE|TRANSFORMERS_[A-Z_]+|(WANDB|TRACKIO|MLFLOW)_[A-Z_]+'
    plain+='|(SLURM|PET|NCCL|GLOO)_[A-Z_]+|OMP_NUM_THREADS' # several nodes, and when the job must end
    local proxy='(HTTPS?|NO|ALL)_PROXY|(https?|no|all)_proxy'
    local hub='HF_(TOKEN|ENDPOINT|HUB_OFFLINE)|TRACKIO_[A-Z_]+'
    wanted=$(matching "$plain" | grep -vxE "$secret|HF_HUB_OFFLINE" || true)
    for reason; do
        case $reason in
            fetch | look) wanted+=$'\n'$(matching "$hub|(WANDB|MLFLOW)_[A-Z_]+|${further// /|}") ;;
            hub) wanted+=$'\n'$(matching "$hub") ;;
            wandb) wanted+=$'\n'$(matching 'WANDB_[A-Z_]+') ;;
            mlflow) wanted+=$'\n'$(matching 'MLFLOW_[A-Z_]+') ;;
            judge) wanted+=$'\n'$(matching "${further// /|}") ;;
        esac
        wanted+=$'\n'$(matching "$proxy")
    done
    # Folders of this machine are not those of the container.
    sort -u <<<"$wanted" | grep -vE '(^|DIR|CACHE|PATH)$' || true
}

# Names of the user's variables that PATTERN fits
matching() { compgen -e | grep -xE "$1" || true; } # PATTERN

# Writes the variables that REASONS need to $secrets/environment, as a file that a shell reads.
#
# `docker inspect` and `ps` show what is given as an option. They do not show what is in a mounted file.
write_environment() { # REASONS...
    local name value
    while read -r name; do
        value=${!name}
        printf "export %s='%s'\n" "$name" "${value//\'/\'\\\'\'}"
    done < <(variables_for "$@") >"$secrets/environment"
}

# Makes the folder $secrets, in memory where that can be.
make_secrets() {
    secrets=$(umask 077 && { mktemp -d -p "${XDG_RUNTIME_DIR:-/dev/shm}" || mktemp -d; } 2>/dev/null) ||
        die 4 "cannot make a temporary folder."
    trap 'rm -rf -- "$secrets"' EXIT
}

# Sets words, a container's command line: REASONS, then --, then the script and its arguments
#
# REASONS say what the container needs the network for. Without one, it has neither network nor token.
compose() {
    local reasons=() extra
    while [[ $1 != -- ]]; do
        reasons+=("$1")
        shift
    done
    shift
    words=("${run[@]}")
    read -ra extra <<<"${DOCKER_ARGS:-}"
    if [[ -z ${reasons[*]} || ${reasons[*]} == look ]] && [[ " ${DOCKER_ARGS:-}" != *" --net"* ]]; then
        add_no_network
    elif [[ " ${reasons[*]} " == *" nodes "* && $engine != apptainer ]]; then
        words+=(--network host) # other nodes do not reach a container behind a bridge
    fi
    if [[ " ${reasons[*]} " =~ " "(fetch|hub)" " ]]; then
        add_token_file
    else
        words+=(--env HF_HUB_OFFLINE=1)
        hide_tokens_of_cache
    fi

    if [[ $engine == apptainer ]]; then
        export_for_apptainer "${reasons[@]}"
        words+=("${extra[@]}" "$image" python "$@")
        return
    fi
    write_environment "${reasons[@]}"
    if [[ -s $secrets/environment ]]; then
        words+=(--mount "$(bind "$secrets/environment" /run/environment readonly)" --entrypoint sh)
        # shellcheck disable=SC2016 # the shell in the container expands it
        set -- -c '. /run/environment && exec python "$@"' sh "$@"
    fi
    words+=("${extra[@]}" "$image" "$@")
}

add_no_network() {
    if [[ $engine == apptainer ]]; then words+=(--net); fi
    words+=(--network none)
}

# Mounts the user's token file.
add_token_file() {
    [[ -n ${HF_TOKEN_PATH:-} ]] || return 0
    local folder
    folder=$(cd -- "$(dirname -- "$HF_TOKEN_PATH")" && pwd -P)
    words+=(--mount "$(bind "$folder/$(basename -- "$HF_TOKEN_PATH")" /run/hf_token readonly)")
    words+=(--env HF_TOKEN_PATH=/run/hf_token)
}

# Covers the tokens that `hf auth login` leaves in the folder of the cache.
hide_tokens_of_cache() {
    local file
    for file in token stored_tokens; do
        if [[ -e $hf_home/$file ]]; then
            words+=(--mount "$(bind /dev/null "/cache/huggingface/$file" readonly)")
        fi
    done
}

# Apptainer takes variables of this process by a prefix, so that none stands on a command line: REASONS...
export_for_apptainer() {
    local name
    for name in $(compgen -e APPTAINERENV_); do unset "$name"; done
    while read -r name; do
        export "APPTAINERENV_$name=${!name}"
    done < <(variables_for "$@")
}

# ---- the two steps

hub_is_off() { [[ ${HF_HUB_OFFLINE:-} =~ ^(1|[Oo][Nn]|[Yy][Ee][Ss]|[Tt][Rr][Uu][Ee])$ ]]; }

# Downloads what the job needs. Sets needs: for each reason why the job itself needs the network, a word and a sentence.
fetch() { # SCRIPT, ARGUMENTS...
    local script=$1 child status=0 reason=fetch
    shift
    if hub_is_off; then
        reason=look
        echo "fetch step: nothing is downloaded, because HF_HUB_OFFLINE is set" >&2
    else
        echo "fetch step: with the network and your tokens, to download what is not in the cache" >&2
    fi
    compose "$reason" -- "$script" --fetch "$@"
    "$client" "${words[@]}" </dev/null >"$secrets/needs" &
    child=$!
    trap 'kill -TERM "$child" 2>/dev/null' INT TERM HUP
    wait "$child" || status=$?
    trap - INT TERM HUP
    if ((status != 0)); then
        wait "$child" 2>/dev/null || true # after a signal, until the container has ended
        hint=
        exit "$status"
    fi
    mapfile -t needs <"$secrets/needs"
}

# Puts the container of the job in the place of this script: REASONS, then --, then the script and its arguments
become_job() {
    local interactive=() label="gpt-oss-grpo.start=$$.$RANDOM"
    compose "$@"
    if [[ -t 0 && -t 1 ]]; then interactive=(--interactive --tty); fi
    if [[ $engine == apptainer ]]; then
        rm -rf -- "$secrets"
        exec "$client" "${words[@]}"
    fi
    watch_container "$label" </dev/null &
    exec "$client" run --label "$label" "${interactive[@]}" "${words[@]:1}"
}

# Says why a container was killed, which its exit status 137 alone does not, and removes $secrets once it runs.
#
# It works beside the client, because the client has taken the place of this script and with it all signals.
watch_container() ( # LABEL
    trap '' INT HUP QUIT TERM USR1 USR2
    trap - EXIT
    action=.Action code=.Actor.Attributes.exitCode limit='' out_of_memory=''
    if [[ $engine == podman ]]; then action=.Status code=.ContainerExitCode; fi
    exec 3< <(exec "$client" events --filter "label=$1" --format "{{$action}} {{.ID}} {{$code}}" 2>/dev/null)
    events=$!
    while :; do
        read -r -t 2 -u 3 event id status || {
            # Nothing has happened. Is the client still there?
            if (($? > 128)) && kill -0 $$ 2>/dev/null; then continue; fi
            break
        }
        case $event in
            start)
                # A file that is mounted stays readable in the container.
                rm -rf -- "$secrets"
                limit=$("$client" inspect --format '{{.HostConfig.Memory}}' "$id" 2>/dev/null)
                ;;
            oom) out_of_memory=1 ;;
            die | died)
                say_why_killed "$status" "$limit" "$out_of_memory"
                break
                ;;
        esac
    done
    kill "$events" 2>/dev/null
    rm -rf -- "$secrets"
)

say_why_killed() { # STATUS, LIMIT IN BYTES, OUT OF MEMORY
    local limit="no limit of its own"
    if [[ $2 =~ ^[1-9][0-9]*$ ]]; then limit="a limit of $(($2 / 10 ** 6)) MB"; fi
    if [[ -n $3 ]]; then
        echo "train.sh: out of main memory: the container has $limit, and the kernel killed a process in it." >&2
    elif [[ $1 == 137 ]]; then
        echo "train.sh: the container was killed (137): by the kernel for want of main memory (it has $limit)," >&2
        echo "train.sh: or by \`docker kill\`, or by \`docker stop\` after 300 s." >&2
    fi
    if [[ -n $3 || $1 == 137 ]]; then
        echo "train.sh: MEMORY=64g sets another limit; sandbox.workers and model.max_seq_length lower the need." >&2
    fi
}

# ---- what the functions above share

client=
engine=
image=
secrets=  # a folder for what a container is to read and nobody else
run=()    # what the words of both containers begin with
words=()  # the words that the client is called with
needs=()  # lines of a word, a tab and a sentence
declare -A mounted=() # what is mounted already, by its place in the container
