"""Turns what a run has trained into files that others load, and compares the two.

lora          the adapter and the tokenizer, with the base named by its Hub id
merged_16bit  base + scaling · B·A, rounded once to 16 bit
mxfp4         gpt-oss in MXFP4: q, k, v and o are merged, the experts keep their bytes
gguf          merged_16bit, converted by llama.cpp

No model is loaded to write one: parameters are read, changed and written one at a time. Everything
is written beside the output folder and renamed at the end, so that a failed export leaves nothing.
"""

import contextlib
import fcntl
import hashlib
import json
import math
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import tasks
from job import hub, model_card
from job.config import ROOT, Config, load_config, note
from job.errors import ConfigError, ExportError, OutputError, among, one_line
from job.export.base_weights import BaseWeights, is_packed
from job.export.export_check import free_memory_bytes
from job.export.lora_weights import Adapter, read_adapter, read_adapter_files
from job.model import hub_id, is_complete, quiet_bitsandbytes, read_json
from job.run_folder import DISK_ERRORS, find_adapter

FORMATS = ("lora", "merged_16bit", "mxfp4", "gguf")
REPORT = "export.json"
SHARD_BYTES = 2 * 10**9  # one shard is in memory at a time
LIBRARIES_BYTES = 10**9  # what Python, torch and transformers take
CONVERTER = "convert_hf_to_gguf.py"
CONVERTER_VARIABLE = "CONVERT_HF_TO_GGUF"
NUM_PROMPTS = 3
# Asked where the run's own prompts cannot be read
PROMPTS = [
    "What is 17 + 25?",
    "Write a Python function that adds two numbers.",
    "Name three colours.",
]


@dataclass(frozen=True)
class Export:
    """What is to be made. Everything in it has been checked.

    Attributes:
        source: folder of the adapter.
        base: folder of the model that the adapter is added to; None for a lora export whose base is
            not on this machine.
        adapter: None for a lora export, which copies it.
        base_name: its Hub id, or else its path.
        trained_on: the name of the base that the adapter was trained on.
        config: of the run; None for an adapter from elsewhere.
    """

    format: str
    source: Path
    output: Path
    base: Path | None
    base_name: str
    trained_on: str
    config: Config | None
    weights: BaseWeights | None
    adapter: Adapter | None

    @property
    def notes(self) -> list[str]:
        """What a reader must know about the base."""
        notes = []
        if self.trained_on != self.base_name:
            notes.append(
                f"The adapter was trained on {self.trained_on}, and it is added to "
                f"{self.base_name} here."
            )
        if self.weights is None:
            return notes
        if self.weights.layout == "bnb4" and self.format != "lora":
            notes.append(
                f"{self.base_name} is quantised to 4 bit by bitsandbytes. Its unpacked weights, "
                "which the adapter was trained on, are what the adapter is added to."
            )
        loaded_in_4bit = self.config is not None and self.config.model.quantization == "bnb-4bit"
        if loaded_in_4bit and self.weights.layout == "plain":
            notes.append(
                "The run had model.quantization: bnb-4bit: on a GPU it trained on a 4-bit copy of "
                "the base, made while loading. The adapter is added to the 16-bit weights."
            )
        return notes


def export(
    source: Path,
    format: str,
    output: Path | None = None,
    base: str | None = None,
    repo: str | None = None,
    public: bool = False,
    tensors_only: bool = False,
) -> Path:
    """Export what a run has trained, compare it with base + adapter, and upload it if asked to.

    Args:
        source: a run's folder, final_model, a checkpoint, or any folder with a LoRA adapter.
        output: by default exports/<format> in the run's folder.
        base: Hub id or folder of the model that the adapter is added to, in place of the one that
            the adapter names.
        repo: on the Hub. It is made private unless `public`.
        tensors_only: compare the weights, and run no model.

    Returns:
        the folder with the export.

    Raises:
        ConfigError: if it cannot be made here. Nothing is written.
        OutputError: if the output folder cannot be written, or its disk has too little space.
        ExportError: if it differs from base + adapter, and nothing is left of it; or if it could
            not be uploaded.
    """
    began = time.monotonic()
    quiet_bitsandbytes()
    job = prepare(source, format, output, base)
    if repo:
        hub.check_access(repo, public)
    for text in job.notes:
        note(text)
    print(check_resources(job), flush=True)
    with writing(job.output) as folder:
        write(job, folder)
        verdict = compare(job, folder, tensors_only)
        if job.format == "gguf":
            convert_to_gguf(folder, run_of(job.source).name)
            verdict["summary"] += (
                "; compared before the conversion to GGUF, which was not read back"
            )
        model_card.save(folder, card_facts(job, verdict))
        report(job, folder, verdict, time.monotonic() - began)
    print(f"{job.output}  {verdict['summary']}")
    if repo:
        address = hub.upload(job.output, repo, public)
        print(f"uploaded to {address}")
    return job.output


# ---- before anything is written


def prepare(source: Path, format: str, output: Path | None, base: str | None) -> Export:
    """Find and check everything that the export needs.

    Raises:
        ConfigError: for what is missing, damaged, or cannot become this format.
        OutputError: if the output folder exists already.
    """
    if format not in FORMATS:
        raise ConfigError(f"--format: there is no {format}{among(format, FORMATS)}")
    folder = find_adapter(source)
    if output is None:
        output = run_of(folder) / "exports" / format
    output = output.absolute()
    if output.exists():
        raise OutputError(f"--output: {output} exists; remove it, or name another folder")
    if format == "gguf":
        find_converter()

    # The base: the one that the adapter names, or that the run's config names, if none is given
    config = run_config(folder)
    adapter_config, _ = read_adapter_files(folder)
    named = str(adapter_config.get("base_model_name_or_path"))
    names = [named]
    if config is not None:
        names.append(config.model.path)
    if base is not None:
        names = [base]
    base_folder, base_name = find_base(names, must_exist=format != "lora")
    trained_on = base_name
    if base is not None:
        trained_on = hub_id(named) or named

    # What is added to it
    weights, adapter = None, None
    if base_folder is not None:
        weights = BaseWeights(base_folder)
    if format != "lora":
        adapter = read_adapter(folder, weights.config)
        check_format(format, weights, adapter, base_name)
    return Export(
        format=format,
        source=folder,
        output=output,
        base=base_folder,
        base_name=base_name,
        trained_on=trained_on,
        config=config,
        weights=weights,
        adapter=adapter,
    )


def run_of(adapter: Path) -> Path:
    """The folder of the run that an adapter belongs to: what holds final_model and checkpoint-N."""
    return adapter.absolute().parent


def run_config(adapter: Path) -> Config | None:
    """The config of the run that trained the adapter; None if it is not beside it."""
    file = run_of(adapter) / "config.yaml"
    if not file.is_file():
        return None
    try:
        return load_config(file)
    except ConfigError as error:  # the data or the model's folder may be gone since
        note(f"{file} is not used: {error.mistakes[0]}")
        return None


def find_base(names: list[str], must_exist: bool) -> tuple[Path | None, str]:
    """The first of these models that can be had, those on this machine first.

    Returns:
        its folder, and its Hub id or else its path. The folder is None if there is none.

    Raises:
        ConfigError: if there is none and `must_exist`.
    """
    reason = "there is no such folder"
    for name in names:
        if (Path(name) / "config.json").is_file():
            return Path(name).resolve(), hub_id(name) or name
    ids = [name for name in names if not Path(name).is_absolute()]
    for local in (True, False):
        if not local and not must_exist:
            break
        for name in ids:
            try:
                return snapshot(name, local), name
            except (OSError, ValueError) as error:  # not cached, no network, no access, no id
                reason = one_line(error)[:300]
    if must_exist:
        raise ConfigError(
            f"the base {names[0]} is neither a folder, nor in the cache, nor to be downloaded: "
            f"{reason}; name it with --base"
        )
    return None, hub_id(names[0]) or names[0]


def snapshot(name: str, local: bool) -> Path:
    """The folder of a model of the Hub, from the cache or else downloaded.

    Raises:
        OSError, ValueError: if it is not to be had, or not complete.
    """
    from huggingface_hub import snapshot_download

    folder = snapshot_download(
        name,
        local_files_only=local,
        allow_patterns=["*.json", "*.safetensors", "*.jinja", "*.txt", "*.md"],
        ignore_patterns=["*/*"],  # other forms of the same weights
    )
    if not is_complete(Path(folder)):
        raise ValueError(f"{folder} lacks some of its files")
    return Path(folder)


def check_format(format: str, weights: BaseWeights, adapter: Adapter, base_name: str) -> None:
    """Refuse a format that this base or this adapter cannot have.

    Raises:
        ConfigError: with the reason and the way out.
    """
    for name in sorted(adapter.touched):
        if name not in weights.parameters:
            raise ConfigError(
                f"{format}: the adapter changes {name}, which the base stores in parts or shares "
                "with another parameter; that is not merged here. Use --format lora"
            )
    if format != "mxfp4":
        return
    if weights.layout != "mxfp4":
        raise ConfigError(
            f"mxfp4: {base_name} is not a gpt-oss in MXFP4; name one with --base, for example "
            "--base openai/gpt-oss-20b, and the adapter is added to that"
        )
    packed = [name for name in sorted(adapter.changes) if is_packed(weights, name)]
    if packed:
        raise ConfigError(
            f"mxfp4: the adapter also changes the experts ({len(packed)} of its "
            f"{len(adapter.changes)} parameters, such as {packed[0]}). Rounded to 4 bit again, "
            "they would lose every change smaller than half a step between two 4-bit values. Use "
            "--format merged_16bit, or train q_proj, k_proj, v_proj and o_proj alone "
            "(lora.target_modules)"
        )


def check_resources(job: Export) -> str:
    """What the export takes and what this machine has, in one line.

    Raises:
        ConfigError: if there is too little memory.
        OutputError: if there is too little space on the disk.
    """
    written, memory = needs(job)
    parent = next(path for path in job.output.parents if path.exists())
    free_disk = shutil.disk_usage(parent).free
    free_memory = free_memory_bytes()
    if written > free_disk:
        raise OutputError(
            f"--output: {job.format} takes {gb(written)} on the disk of {parent}, and "
            f"{gb(free_disk)} are free; free some, or name another disk with --output"
        )
    if memory > free_memory:
        raise ConfigError(
            f"{job.format} takes {gb(memory)} of memory, and {gb(free_memory)} are free"
        )
    libraries = ", ".join(f"{name} {number}" for name, number in versions().items())
    return (
        f"{job.format}: {gb(written)} on the disk ({gb(free_disk)} free), {gb(memory)} of memory "
        f"({gb(free_memory)} free); {libraries}"
    )


def needs(job: Export) -> tuple[int, int]:
    """Bytes that the export takes on the disk, and in main memory."""
    if job.format == "lora":
        size = (job.source / "adapter_model.safetensors").stat().st_size
        return size, LIBRARIES_BYTES + 2 * size
    total = sum(tensor_sizes(job).values())
    # A parameter, its sum, and what they are worked out from
    largest = 3 * max(merged_bytes(job.weights, name) for name in job.weights.parameters)
    written = total
    if job.format == "gguf":
        written = 2 * total  # the merged model, which is deleted at the end, and the converted one
    return written, LIBRARIES_BYTES + min(total, SHARD_BYTES) + largest


def tensor_sizes(job: Export) -> dict[str, int]:
    """Bytes of each tensor that is written, in the order of writing."""
    if job.format == "mxfp4":
        return {name: job.weights.stored_bytes(name) for name in job.weights.files}
    return {name: merged_bytes(job.weights, name) for name in job.weights.parameters}


def merged_bytes(weights: BaseWeights, name: str) -> int:
    return 2 * math.prod(weights.shape(name))


def gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB"


def versions() -> dict[str, str]:
    names = ("torch", "transformers", "peft", "safetensors", "huggingface-hub")
    return {name: version(name) for name in names}


def find_converter() -> Path:
    """llama.cpp's converter.

    Raises:
        ConfigError: if it is not on this machine.
    """
    named = os.environ.get(CONVERTER_VARIABLE)
    found = named or shutil.which(CONVERTER)
    if found and Path(found).is_file():
        return Path(found)
    where = "is not in PATH"
    if named:
        where = f"is not at {named}"
    raise ConfigError(
        f"gguf: llama.cpp's {CONVERTER} {where}; put a checkout of llama.cpp on this machine and "
        f"set {CONVERTER_VARIABLE}=/path/to/{CONVERTER}"
    )


# ---- writing


@contextlib.contextmanager
def writing(output: Path) -> Iterator[Path]:
    """A folder beside `output` that takes its name at the end, or is removed if anything fails.

    Raises:
        OutputError: if it cannot be written, or another export is writing it.
    """
    folder = output.with_name(f".{output.name}.unfinished")
    is_new = not output.parent.exists()
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with locked(output):
            shutil.rmtree(folder, ignore_errors=True)  # of an export that was killed
            folder.mkdir()
            try:
                yield folder
                folder.rename(output)
            finally:
                shutil.rmtree(folder, ignore_errors=True)
                if is_new and not output.exists():
                    output.parent.rmdir()
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        raise OutputError(f"--output: cannot write {output}: {one_line(error)}") from error


@contextlib.contextmanager
def locked(output: Path) -> Iterator[None]:
    """Keeps a second export out of the folder that `output` will be in."""
    descriptor = os.open(output.parent, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise OutputError(f"--output: another export is writing to {output.parent}") from error
    finally:
        os.close(descriptor)


def write(job: Export, folder: Path) -> None:
    """Write the tokenizer, and the adapter or the weights with their config.json."""
    save_tokenizer(job, folder)
    if job.format == "lora":
        shutil.copyfile(
            job.source / "adapter_model.safetensors", folder / "adapter_model.safetensors"
        )
        config = read_json(job.source / "adapter_config.json")
        config["base_model_name_or_path"] = job.base_name
        save_json(config, folder / "adapter_config.json")
        return
    config = dict(job.weights.config)
    if job.format != "mxfp4":
        config.pop("quantization_config", None)
        config.pop("torch_dtype", None)  # the older name of dtype
        if config.get("dtype") != "float16":
            config["dtype"] = "bfloat16"
    save_json(config, folder / "config.json")
    generation = job.weights.folder / "generation_config.json"
    if generation.is_file():
        shutil.copyfile(generation, folder / generation.name)
    make = merged_tensor
    if job.format == "mxfp4":
        make = mxfp4_tensor
    save_shards(tensor_sizes(job), lambda name: make(job, name), folder)


def save_tokenizer(job: Export, folder: Path) -> None:
    """The tokenizer that the run was trained with; else the base's.

    Raises:
        ConfigError: if neither can be loaded.
    """
    from transformers import AutoTokenizer

    failure: Exception | None = None
    for place in (job.source, job.base):
        if place is None:
            continue
        try:
            tokenizer = AutoTokenizer.from_pretrained(place, local_files_only=True)
        except (OSError, ValueError) as error:
            failure = error
            continue
        tokenizer.save_pretrained(folder)
        return
    raise ConfigError(f"{job.source}: its tokenizer cannot be loaded: {one_line(failure)[:300]}")


def merged_tensor(job: Export, name: str) -> Any:
    """One parameter in 16 bit, with what the adapter adds to it."""
    from job.export.lora_weights import sixteen_bit

    weight = job.weights.read(name)
    dtype = sixteen_bit(weight.dtype)
    if name in job.adapter.replaced:
        weight = job.adapter.replaced[name]
    if name in job.adapter.changes:
        return job.adapter.changes[name].added_to(weight, dtype)
    return weight.to(dtype)


def mxfp4_tensor(job: Export, name: str) -> Any:
    """One tensor as the base stores it, unless the adapter changes it."""
    if name in job.adapter.touched:
        return merged_tensor(job, name)
    return job.weights.stored(name)


def save_shards(sizes: dict[str, int], make: Callable[[str], Any], folder: Path) -> None:
    """Write safetensors files as transformers expects them, with one of them in memory at a time.

    Args:
        sizes: bytes of each tensor, by its name.
        make: called with a name, once for each; returns the tensor.
    """
    from huggingface_hub import split_state_dict_into_shards_factory
    from safetensors.torch import save_file

    plan = split_state_dict_into_shards_factory(
        sizes,
        get_storage_size=lambda size: size,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=SHARD_BYTES,
    )
    for number, (file, names) in enumerate(plan.filename_to_tensors.items(), start=1):
        tensors = {name: make(name).contiguous() for name in names}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        del tensors
        print(f"written: {number} of {len(plan.filename_to_tensors)} files", flush=True)
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        save_json(index, folder / "model.safetensors.index.json")


def save_json(values: dict[str, Any], file: Path) -> None:
    file.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def convert_to_gguf(folder: Path, name: str) -> None:
    """Replace the merged model in `folder` by one GGUF file.

    Raises:
        ExportError: if llama.cpp's converter fails.
    """
    file = folder / f"{name}.gguf"
    command = [sys.executable, str(find_converter()), str(folder), "--outfile", str(file)]
    result = subprocess.run(
        [*command, "--outtype", "bf16"], capture_output=True, text=True, errors="replace"
    )
    if result.returncode != 0 or not is_gguf(file):
        lines = result.stderr.strip().splitlines() or ["it wrote no GGUF file"]
        raise ExportError(f"gguf: {CONVERTER} failed: {lines[-1]}; nothing is left of the export")
    for path in folder.iterdir():
        if path != file:
            path.unlink()


def is_gguf(file: Path) -> bool:
    """Whether the file begins as GGUF files do."""
    if not file.is_file():
        return False
    with file.open("rb") as start:
        return start.read(4) == b"GGUF"


# ---- the comparison, and what is said about it


def compare(job: Export, folder: Path, tensors_only: bool) -> dict[str, Any]:
    """Reload what was written in a fresh process without a network, and compare it.

    Returns:
        what job/export/export_check.py says, and a `summary` in one line.

    Raises:
        ExportError: if it differs from base + adapter, or cannot be loaded.
    """
    print("comparing with base + adapter ...", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        spec, result = Path(scratch, "spec.json"), Path(scratch, "result.json")
        asked = {
            "format": job.format,
            "adapter": str(job.source.absolute()),
            "base": job.base and str(job.base),
            "export": str(folder),
            "prompts": prompts_of(job.config),
            "tensors_only": tensors_only,
        }
        save_json(asked, spec)
        process = subprocess.run(
            [sys.executable, "-m", "job.export.export_check", str(spec), str(result)],
            cwd=ROOT,
            env=os.environ | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"},
            capture_output=True,
            text=True,
            errors="replace",
        )
        if process.returncode != 0:
            lines = process.stderr.strip().splitlines() or [f"exit code {process.returncode}"]
            raise ExportError(
                f"{job.format}: the export cannot be loaded again: {lines[-1]}; nothing is left "
                "of it"
            )
        verdict = read_json(result)
    verdict["summary"] = summary(verdict)
    if not verdict["passed"]:
        raise ExportError(
            f"{job.format}: the export is not base + adapter: {verdict['summary']}; nothing is "
            "left of it"
        )
    return verdict


def prompts_of(config: Config | None) -> list[list[dict[str, str]]]:
    """A few prompts, as lists of messages: the run's own where they can be had."""
    found: list[list[dict[str, str]]] = []
    if config is not None:
        for options in config.tasks:
            try:
                rows = tasks.load(options.type).rows(options)
            except (OSError, ValueError):  # the data may be gone
                continue
            found += [row["prompt"] for row in rows[:NUM_PROMPTS] if row["prompt"] not in found]
    for prompt in PROMPTS:
        found.append([{"role": "user", "content": prompt}])
    return found[:NUM_PROMPTS]


def summary(verdict: dict[str, Any]) -> str:
    """The verdict in one line."""
    tensors, tokens = verdict["tensors"], verdict["tokens"]
    said = f"{tensors['equal']} tensors equal to the bit"
    if "merged" in tensors:
        said += f", {tensors['merged']} merged and rounded once"
    if tensors["different"]:
        said = f"{len(tensors['different'])} tensors differ, such as {tensors['different'][0]}"
    if "skipped" in tokens:
        return f"{said}; tokens not compared: {tokens['skipped']}"
    return (
        f"{said}; {tokens['greedy_equal']} of {tokens['greedy_total']} greedy tokens equal; "
        f"max |Δlogit| {tokens['max_logit_difference']:.2g}, at most "
        f"{tokens['logit_tolerance']:.2g} at {tokens['tokens_within_tolerance']:.1%} of the "
        f"tokens; KL {tokens['kl']:.2g} nats a token, {tokens['kl_tolerance']:g} allowed, "
        f"{tokens['kl_without_adapter']:.2g} without the adapter"
    )


def report(job: Export, folder: Path, verdict: dict[str, Any], wall_s: float) -> None:
    """Write export.json: what was made of what, the verdict, and the SHA-256 of each file."""
    files = {}
    for file in sorted(folder.iterdir()):
        with file.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
        files[file.name] = {"bytes": file.stat().st_size, "sha256": digest}
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    own = resource.getrusage(resource.RUSAGE_SELF)
    values = {
        "format": job.format,
        "base": job.base_name,
        "trained_on": job.trained_on,
        "adapter": job.source.name,
        "notes": job.notes,
        "versions": versions(),
        "verdict": verdict,
        "wall_s": round(wall_s, 1),
        "peak_memory_bytes": {
            "writing": own.ru_maxrss * 1024,
            "comparing": children.ru_maxrss * 1024,
        },
        "files": files,
    }
    save_json(values, folder / REPORT)


def card_facts(job: Export, verdict: dict[str, Any]) -> model_card.Facts:
    """What the model card says."""
    return model_card.Facts(
        config=job.config,
        base=job.base_name,
        base_folder=job.base,
        format=job.format,
        evaluation=model_card.read_evaluation(run_of(job.source)),
        notes=[*job.notes, f"Compared with base + adapter: {verdict['summary']}."],
    )
