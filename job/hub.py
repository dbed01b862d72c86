"""Uploads a folder to the Hugging Face Hub.

    python -m job.hub check REPO private|public
    python -m job.hub upload REPO private|public FOLDER

The work is done in a process of its own: HF_HUB_OFFLINE, which keeps the rest of this project from
the network, is read by huggingface_hub when it is imported. The token comes from HF_TOKEN or from
the Hub's own file, and is handed to nothing else.
"""

import os
import subprocess
import sys
from pathlib import Path

from job.config import ROOT
from job.errors import ConfigError, ExportError, one_line

OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")


def is_set(name: str) -> bool:
    """Whether the user has switched the Hub off with this variable."""
    return os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE")


def forget_empty() -> None:
    """Remove variables that are set to nothing. PEFT would raise, and here they mean nothing."""
    for name in OFFLINE:
        if os.environ.get(name) == "":
            del os.environ[name]


def check_access(repo: str, public: bool, asked_by: str = "--push-to-hub") -> None:
    """Ask the Hub whether this token may write to `repo`, before hours of work.

    Args:
        asked_by: the option or key that the message names.

    Raises:
        ConfigError: if there is no token, or the Hub does not accept it; if it may not write there;
            if the repository is public already and `public` is false.
    """
    process = run("check", repo, visibility(public))
    if process.returncode != 0:
        raise ConfigError(f"{asked_by}: {last_line(process)}")


def upload(folder: Path, repo: str, public: bool) -> str:
    """Upload every file of a folder. Returns the address of the repository.

    Raises:
        ExportError: if it fails. The folder stays.
    """
    process = run("upload", repo, visibility(public), str(folder))
    if process.returncode != 0:
        raise ExportError(f"--push-to-hub: {last_line(process)}; the export is in {folder}")
    return process.stdout.strip().splitlines()[-1]


def run(*arguments: str) -> subprocess.CompletedProcess:
    """This module, in a process that may use the network."""
    environment = {name: value for name, value in os.environ.items() if name not in OFFLINE}
    return subprocess.run(
        [sys.executable, "-m", "job.hub", *arguments],
        cwd=ROOT,
        env=environment | {"HF_HUB_DISABLE_PROGRESS_BARS": "1"},
        capture_output=True,
        text=True,
        errors="replace",
    )


def visibility(public: bool) -> str:
    if public:
        return "public"
    return "private"


def last_line(process: subprocess.CompletedProcess) -> str:
    lines = process.stderr.strip().splitlines() or [f"exit code {process.returncode}"]
    return lines[-1]


# ---- inside that process


def main(arguments: list[str]) -> str:
    """Returns what is to be printed. Exits with one line if the Hub refuses."""
    import httpx
    from huggingface_hub import get_token

    command, repo, wanted, *folders = arguments
    if get_token() is None:
        sys.exit("there is no token for the Hub; set HF_TOKEN, or run: hf auth login")
    try:
        if command == "check":
            return check_in_process(repo, wanted)
        return upload_in_process(repo, wanted, folders[0])
    # No network, no access, no such user, a name that is not allowed
    except (OSError, ValueError, httpx.HTTPError) as error:
        sys.exit(f"the Hub does not take {repo}: {one_line(error)[:300]}")


def check_in_process(repo: str, wanted: str) -> str:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError
    from huggingface_hub.utils import validate_repo_id

    validate_repo_id(repo)
    api = HfApi()
    user = api.whoami()
    name = user["name"]
    if "/" not in repo:
        repo = f"{name}/{repo}"

    # What the token may do
    role = user.get("auth", {}).get("accessToken", {}).get("role")
    if role == "read":
        sys.exit("the token may only read; make one that may write, and set HF_TOKEN to it")
    owners = [name, *(organization["name"] for organization in user.get("orgs", []))]
    if repo.partition("/")[0] not in owners:
        sys.exit(f"{repo}: this token writes to repositories of {', '.join(owners)} alone")

    # Whether the repository is as it should be
    try:
        found = api.model_info(repo)
    except RepositoryNotFoundError:
        return name
    if wanted == "private" and not found.private:
        sys.exit(f"{repo} exists and is public; add --public to upload to it")
    return name


def upload_in_process(repo: str, wanted: str, folder: str) -> str:
    from huggingface_hub import HfApi

    api = HfApi()
    address = api.create_repo(repo, private=wanted == "private", exist_ok=True)
    api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Upload an export")
    return str(address)


if __name__ == "__main__":
    print(main(sys.argv[1:]))
