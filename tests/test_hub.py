"""hub.py: uploads to a server on this machine that answers as the Hub does."""

import base64
import json
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from job import hub
from job.errors import ConfigError, ExportError

TOKEN = "hf_secret"


class FakeHub(BaseHTTPRequestHandler):
    """One user, who may write; repositories are private or public as they were created."""

    def do_GET(self):
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.answer(401, {"error": "Invalid user token."})
        elif self.path == "/api/whoami-v2":
            token = {"role": self.server.role}
            user = {"name": "me", "orgs": [{"name": "ours"}], "auth": {"accessToken": token}}
            self.answer(200, user)
        elif self.repository() in self.server.repositories:
            private = self.server.repositories[self.repository()]
            self.answer(200, {"id": self.repository(), "private": private, "siblings": []})
        else:
            self.answer(404, {"error": "not found"}, {"X-Error-Code": "RepoNotFound"})

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization', 'me')}/{asked['name']}"
            self.server.repositories.setdefault(name, asked.get("visibility") == "private")
            self.answer(200, {"url": f"{self.server.address}/{name}"})
        elif "/preupload/" in self.path:
            files = json.loads(body)["files"]
            regular = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                       for f in files]  # fmt: skip
            self.answer(200, {"files": regular})
        elif "/commit/" in self.path:
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    content = base64.b64decode(entry["value"]["content"])
                    self.server.files[entry["value"]["path"]] = content
            address = f"{self.server.address}/{self.repository()}"
            self.answer(200, {"commitUrl": f"{address}/commit/abc", "commitOid": "abc"})
        else:  # the check of a card's metadata
            self.answer(200, {"errors": [], "warnings": []})

    def repository(self):
        return "/".join(self.path.removeprefix("/api/models/").split("?")[0].split("/")[:2])

    def answer(self, status, values, headers=None):
        body = json.dumps(values).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch, tmp_path):
    running = ThreadingHTTPServer(("127.0.0.1", 0), FakeHub)
    running.address = f"http://127.0.0.1:{running.server_port}"
    running.repositories, running.files, running.role = {}, {}, "write"
    threading.Thread(target=running.serve_forever, daemon=True).start()
    for name in ("HF_TOKEN", "HF_TOKEN_PATH", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("HF_ENDPOINT", running.address)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # as this project sets it
    yield running
    running.shutdown()


def test_an_export_is_uploaded_and_private(server, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    folder = tmp_path / "export"
    folder.mkdir()
    (folder / "README.md").write_text("---\nlibrary_name: peft\n---\n\ntext\n")
    (folder / "export.json").write_text("{}")
    hub.check_access("me/model", public=False)
    assert server.repositories == {}  # asking makes nothing
    address = hub.upload(folder, "me/model", public=False)
    assert address == f"{server.address}/me/model"
    assert server.repositories == {"me/model": True}
    assert server.files["export.json"] == b"{}" and "README.md" in server.files
    assert os.environ["HF_HUB_OFFLINE"] == "1"

    server.repositories["me/open"] = False
    with pytest.raises(ConfigError, match="me/open exists and is public; add --public"):
        hub.check_access("me/open", public=False)
    hub.check_access("me/open", public=True)


@pytest.mark.slow  # starts several processes
def test_the_token_may_lie_in_the_file_of_the_hub(server, tmp_path):
    with pytest.raises(ConfigError, match="there is no token for the Hub; set HF_TOKEN"):
        hub.check_access("me/model", public=False)
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "token").write_text(TOKEN)
    hub.check_access("me/model", public=False)


@pytest.mark.slow  # starts several processes
def test_what_the_hub_refuses_is_one_line(server, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(ConfigError, match="the Hub does not take me/model: ") as caught:
        hub.check_access("me/model", public=False)
    assert "\n" not in str(caught.value) and "hf_wrong" not in str(caught.value)
    with pytest.raises(ConfigError, match="the Hub does not take not a name"):
        hub.check_access("not a name", public=False)
    server.shutdown()
    server.server_close()
    with pytest.raises(ExportError, match="the Hub does not take me/model.*the export is in"):
        hub.upload(tmp_path, "me/model", public=False)


@pytest.mark.parametrize(
    ("repo", "role", "message"),
    [
        ("others/model", "write", "others/model: this token writes to repositories of me, ours al"),
        ("model", "read", "the token may only read"),
        ("open", "write", "me/open exists and is public"),  # a name alone is the user's own
    ],
)
def test_a_token_that_may_not_write_there_is_refused(server, monkeypatch, repo, role, message):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    server.role, server.repositories["me/open"] = role, False
    with pytest.raises(ConfigError, match=message):
        hub.check_access(repo, public=False)
