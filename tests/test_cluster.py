"""cluster/: each file against the schema of its scheduler, and SLURM for real."""

import itertools
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import slurm_cluster
import yaml

from job import config, errors

ROOT = Path(__file__).parent.parent
CLUSTER = ROOT / "cluster"
PATIENCE_S = 900
TIMES = {"step_time", "time/rollout", "time/grading", "time/scoring", "time/backward"}


def documents(name):
    return list(yaml.safe_load_all((CLUSTER / name).read_text()))


def pod_of(job):
    """The pod of a Job."""
    return job["spec"]["template"]["spec"]


CLAIMS_AND_JOB = documents("kubernetes.yaml")
JOB = CLAIMS_AND_JOB[-1]
TRAIN_JOB, RUNTIME = documents("trainjob.yaml")
NODE = RUNTIME["spec"]["template"]["spec"]["replicatedJobs"][0]["template"]
SKYPILOT = documents("skypilot.yaml")[0]
SBATCH = (CLUSTER / "slurm.sbatch").read_text()
PODS = {"kubernetes.yaml": pod_of(JOB), "trainjob.yaml": pod_of(NODE)}


# ---- Against the schemas


@pytest.mark.parametrize("name", ["kubernetes.yaml", "trainjob.yaml", "skypilot.yaml"])
def test_yaml_is_clean(name):
    pytest.importorskip("yamllint", reason="yamllint is not installed (requirements-dev.txt)")
    run = subprocess.run(
        [sys.executable, "-m", "yamllint", "--strict", CLUSTER / name],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout


def test_kubernetes_knows_every_key():
    validate = pytest.importorskip(
        "kubernetes_validate", reason="kubernetes-validate is not installed (requirements-dev.txt)"
    )
    for document in CLAIMS_AND_JOB:
        validate.validate(document, "1.37", strict=True)
    broken = json.loads(json.dumps(JOB))
    broken["spec"]["podFailurePolice"] = {}
    with pytest.raises(validate.ValidationError):
        validate.validate(broken, "1.37", strict=True)


def test_kubeflow_trainer_knows_every_key():
    models = pytest.importorskip(
        "kubeflow_trainer_api.models",
        reason="kubeflow-trainer-api is not installed (requirements-dev.txt)",
    )
    # What a model does not know, it drops.
    for document, model in (
        (TRAIN_JOB, models.TrainerV1alpha1TrainJob),
        (RUNTIME, models.TrainerV1alpha1TrainingRuntime),
    ):
        assert model.from_dict(document).to_dict() == document


# The keys of SkyPilot 0.14 that the file uses. Its own schema comes with a hundred packages, which
# contradict the pins of this project. https://docs.skypilot.co/en/latest/reference/yaml-spec.html
SKYPILOT_KEYS = {
    "": {"name", "workdir", "num_nodes", "resources", "file_mounts", "setup", "run"},
    "resources": {"accelerators", "use_spot", "disk_size", "job_recovery"},
    "resources.job_recovery": {"strategy", "max_restarts_on_errors", "recover_on_exit_codes"},
    "file_mounts./outputs": {"name", "source", "store", "mode", "persistent"},
}


def test_skypilot_knows_every_key():
    for path, keys in SKYPILOT_KEYS.items():
        node = SKYPILOT
        for name in filter(None, path.split(".")):
            node = node[name]
        assert set(node) <= keys, path
    assert SKYPILOT["file_mounts"]["/outputs"]["mode"] in ("MOUNT", "COPY", "MOUNT_CACHED")


# ---- What the files promise

ASKS = ["grpo.resume_from_checkpoint=auto", "train.requeue=true"]


def commands():
    """What each file starts, in words: (file, words behind train.py or train.sh)."""
    yield "kubernetes.yaml", PODS["kubernetes.yaml"]["containers"][0]["args"][1:]
    yield "trainjob.yaml", TRAIN_JOB["spec"]["trainer"]["args"][1:]
    words = SKYPILOT["run"].replace("\\\n", " ").split()
    yield "skypilot.yaml", words[words.index("train.sh") + 2 :]
    (line,) = re.findall(r'^"\$\{run\[@\]\}".*$', SBATCH, re.MULTILINE)
    yield "slurm.sbatch", re.findall(r"\S+=\S+", line)


@pytest.mark.parametrize(("name", "words"), list(commands()), ids=lambda value: str(value)[:20])
def test_each_file_resumes_wants_a_requeue_and_sets_nothing_else(name, words):
    where = [word for word in words if word.startswith("grpo.output_dir=")]
    assert [word for word in words if word not in where] == ASKS
    config.load_config(overrides=[*ASKS])


@pytest.mark.parametrize("name", PODS)
def test_a_pod_may_do_little_and_has_what_it_needs(name):
    pod = PODS[name]
    assert pod["securityContext"]["runAsNonRoot"] and not pod["automountServiceAccountToken"]
    for container in [*pod.get("initContainers", []), *pod["containers"]]:
        locked = container["securityContext"]
        assert locked["capabilities"] == {"drop": ["ALL"]}
        assert not locked["allowPrivilegeEscalation"] and locked["readOnlyRootFilesystem"]
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        assert set(mounts) == {"/cache", "/app/gpt-oss-grpo", "/tmp", "/dev/shm"}
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        assert volumes[mounts["/dev/shm"]]["emptyDir"]["medium"] == "Memory"
        claims = {claim["metadata"]["name"] for claim in CLAIMS_AND_JOB[:-1]}
        for path in ("/cache", "/app/gpt-oss-grpo"):
            assert volumes[mounts[path]]["persistentVolumeClaim"]["claimName"] in claims


def test_only_the_fetch_step_has_the_token():
    (fetch,) = PODS["kubernetes.yaml"]["initContainers"]
    assert fetch["args"] == ["train.py", "--fetch"]
    assert fetch["env"][0]["valueFrom"]["secretKeyRef"]["optional"]
    for name, pod in PODS.items():
        for container in pod["containers"]:
            assert "TOKEN" not in json.dumps(container), name
            assert {"name": "HF_HUB_OFFLINE", "value": "1"} in container["env"]


def rule(job, code):
    """What the failure policy of a Job does when a pod ends with this code."""
    for entry in job["spec"]["podFailurePolicy"]["rules"]:
        if code in entry.get("onExitCodes", {}).get("values", []):
            return entry["action"]
    return "Count"


def test_what_starts_again_and_what_fails():
    disrupted = JOB["spec"]["podFailurePolicy"]["rules"][0]
    assert disrupted["action"] == "Ignore"
    assert disrupted["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    assert rule(JOB, errors.REQUEUE) == "Ignore"
    assert rule(NODE, errors.REQUEUE) == "Count" and NODE["spec"]["backoffLimit"] == 0
    for job in (JOB, NODE):
        for code in (errors.ConfigError.exit_code, errors.STOPPED_BY_WATCHDOG):
            assert rule(job, code) == "FailJob"
        assert rule(job, 1) == rule(job, 137) == "Count"
    # The set of jobs fails where a job says that no start would mend it, and starts again else.
    policy = RUNTIME["spec"]["template"]["spec"]["failurePolicy"]
    assert policy["rules"][0]["onJobFailureReasons"] == ["PodFailurePolicy"]
    assert policy["rules"][0]["action"] == "FailJobSet" and policy["maxRestarts"] > 0
    assert SKYPILOT["resources"]["job_recovery"]["recover_on_exit_codes"] == [errors.REQUEUE]
    assert f"wants_a_requeue={errors.REQUEUE} " in SBATCH


def test_a_scheduler_waits_longer_than_the_grace_of_a_run():
    grace_s = config.load_config().train.grace_s
    for pod in PODS.values():
        assert pod["terminationGracePeriodSeconds"] > grace_s
    assert int(re.search(r"--signal=B:TERM@(\d+)", SBATCH)[1]) > grace_s
    assert int(re.search(r"--wait=(\d+)", SBATCH)[1]) > grace_s


# ---- SLURM for real

needs_slurm = pytest.mark.skipif(
    bool(slurm_cluster.missing()),
    reason=f"not installed: {', '.join(slurm_cluster.missing())} (Debian: slurm-wlm, munge)",
)
CODE = [
    "--config", "configs/tiny.yaml", "task.type=code", "task.check=false", "evaluate.before=false",
    "evaluate.after=false", "grpo.report_to=[]", "grpo.max_steps=5", "grpo.save_steps=50",
]  # fmt: skip


class Slurm:
    """Submits cluster/slurm.sbatch to a SLURM of this machine."""

    def __init__(self, environment, folder):
        self.environment = environment | {
            "TRAIN": f"{sys.executable} train.py",
            "CUDA_VISIBLE_DEVICES": "",
        }
        self.log = folder / "job.log"

    def call(self, *command):
        run = subprocess.run(
            command, cwd=ROOT, env=self.environment, capture_output=True, text=True
        )
        assert run.returncode == 0, run.stderr
        return run.stdout.strip()

    def submit(self, *overrides, options=()):
        small = ["--cpus-per-task=1", "--mem=800", f"--output={self.log}", *options]
        script = [str(CLUSTER / "slurm.sbatch"), *overrides]
        return self.call("sbatch", "--parsable", *small, *script)

    def field(self, job, name):
        return re.search(rf"\b{name}=(\S+)", self.call("scontrol", "show", "job", job))[1]

    def wait(self, happened):
        end = time.monotonic() + PATIENCE_S
        while not happened():
            assert time.monotonic() < end, self.log.read_text()
            time.sleep(0.2)

    def wait_for(self, job, state):
        ended = ("COMPLETED", "FAILED", "CANCELLED")
        self.wait(lambda: self.field(job, "JobState") in (state, *ended))
        assert self.field(job, "JobState") == state, self.log.read_text()


ports = itertools.count(17800, 2)


@pytest.fixture
def slurm(tmp_path):
    with slurm_cluster.cluster(tmp_path / "slurm", next(ports)) as environment:
        yield Slurm(environment, tmp_path)


def metrics(output):
    """metrics.jsonl without what depends on the clock."""
    if not (output / "metrics.jsonl").is_file():
        return []
    lines = []
    for line in (output / "metrics.jsonl").read_text().splitlines():
        entry = json.loads(line)
        lines.append({name: entry[name] for name in entry if name not in TIMES})
    return lines


@needs_slurm
@pytest.mark.slurm
@pytest.mark.slow  # trains twice
def test_a_job_that_is_requeued_twice_ends_like_one_that_was_never_interrupted(
    slurm, tmp_path, run_job
):
    output, whole = tmp_path / "run", tmp_path / "whole"
    job = slurm.submit(*CODE, f"grpo.output_dir={output}")
    for starts, steps in ((1, 1), (2, 3)):
        slurm.wait(lambda steps=steps: len(metrics(output)) >= steps)
        # As --signal=B:TERM@600 does before the limit, and a preemption at any time
        slurm.call("scancel", "--signal=TERM", "--batch", job)
        slurm.wait_for(job, "PENDING")
        assert slurm.field(job, "Restarts") == str(starts)
        assert (output / "exit_code").read_text() == "75\n"
        time.sleep(2)  # a start within the second of the end is taken for the one that has ended
        slurm.call("scontrol", "update", f"JobId={job}", "StartTime=now")  # not in two minutes
    slurm.wait_for(job, "COMPLETED")
    assert slurm.log.read_text().count("it is queued again") == 2

    uninterrupted = run_job(*CODE, f"grpo.output_dir={whole}")
    assert uninterrupted.returncode == 0, uninterrupted.stderr
    assert [entry["step"] for entry in metrics(output)] == [1, 2, 3, 4, 5]
    assert metrics(output) == metrics(whole)
    adapters = [
        (folder / "final_model" / "adapter_model.safetensors").read_bytes()
        for folder in (output, whole)
    ]
    assert adapters[0] == adapters[1]


@needs_slurm
@pytest.mark.slurm
def test_a_job_with_a_mistake_in_its_config_is_not_started_again(slurm):
    job = slurm.submit("grpo.max_step=1")
    slurm.wait_for(job, "FAILED")
    assert slurm.field(job, "ExitCode") == "2:0" and slurm.field(job, "Restarts") == "0"
    assert "error: grpo.max_step: no such key" in slurm.log.read_text()
