"""Runs go to a hub and come back; a stand-in on this machine speaks its protocol."""

import base64
import errno
import hashlib
import json
import os
import shutil
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote

import numpy as np
import pytest
from refused import refused
from tiny import flags

import qscape as qs
from qscape.cli import main
from qscape.errors import RunError
from qscape.export import hub

pytest.importorskip("huggingface_hub")
pytest.importorskip("matplotlib")


class Hub(BaseHTTPRequestHandler):
    """Repositories in memory: create, list, commit (JSON lines with base64), and files by revision."""

    files: dict[str, dict[str, bytes]]  # by repository and name
    refuses: bool

    def log_message(self, *args):
        pass

    def answer(self, body: bytes = b"{}", status: int = 200, **headers: str):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def revision(self, repository: str) -> str:
        return hashlib.sha1(repr(sorted(self.files[repository].items())).encode()).hexdigest()

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        if not body and self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        path = self.path.partition("?")[0].strip("/").split("/")
        if self.refuses or self.headers["Authorization"] != "Bearer hf_test":
            return self.answer(b'{"error": "no"}', 403)
        if path == ["api", "repos", "create"]:
            about = json.loads(body)
            name = f"{about.get('organization') or 'me'}/{about['name']}"
            self.files.setdefault(name, {".gitattributes": b""})
            return self.answer(json.dumps({"url": f"https://huggingface.co/{name}", "name": name}).encode())
        repository = "/".join(path[2:4])
        if path[4:5] == ["preupload"]:
            wanted = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                for f in json.loads(body)["files"]
            ]
            return self.answer(json.dumps({"files": wanted}).encode())
        if path[4:5] == ["commit"]:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    self.files[repository][line["value"]["path"]] = content
                elif line["key"] == "deletedFile":
                    del self.files[repository][line["value"]["path"]]
            oid = self.revision(repository)
            made = {
                "success": True,
                "commitOid": oid,
                "commitUrl": f"https://huggingface.co/{repository}/commit/{oid}",
            }
            return self.answer(json.dumps(made).encode())
        return self.answer()  # checks of the card's header

    def do_GET(self):
        path = unquote(self.path.partition("?")[0]).strip("/").split("/")
        if path[:2] == ["api", "models"]:
            repository = "/".join(path[2:4])
            names = [{"rfilename": name} for name in self.files[repository]]
            oid = self.revision(repository)
            if path[4:5] == ["tree"]:
                tree = [
                    {"type": "file", "path": n, "size": len(b), "oid": hashlib.sha1(b).hexdigest()}
                    for n, b in self.files[repository].items()
                ]
                return self.answer(json.dumps(tree).encode())
            return self.answer(json.dumps({"id": repository, "sha": oid, "siblings": names}).encode())
        repository, name = "/".join(path[:2]), "/".join(path[4:])
        found = self.files.get(repository, {}).get(name)
        if found is None:
            code = "EntryNotFound" if repository in self.files else "RepoNotFound"
            return self.answer(status=404, X_Error_Code=code)
        etag = f'"{hashlib.sha1(found).hexdigest()}"'
        return self.answer(found, X_Repo_Commit=self.revision(repository), ETag=etag)

    do_HEAD = do_GET


def reach(monkeypatch, port: int):
    """Let the client take this port for the hub, and try again without waiting."""
    address, file = f"http://127.0.0.1:{port}", "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", address + file)
    impatient = SimpleNamespace(**vars(time) | {"sleep": lambda seconds: None})
    monkeypatch.setattr("huggingface_hub.utils._http.time", impatient)


@pytest.fixture
def server(monkeypatch, tmp_path):
    """The stand-in, which the client takes for the hub; yields the handler's class with its files."""
    import huggingface_hub.constants as constants

    handler = type("Handler", (Hub,), {"files": {}, "refuses": False})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        reach(monkeypatch, server.server_port)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", "hf_test")
        yield handler
        server.shutdown()


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hub") / "run"
    argv = ["train", "td3", "--env", "tiny:Clock-v0", "--steps", "60", *flags("td3", warmup=20)]
    assert main([*map(str, argv), "--eval-every", "30", "--eval-episodes", "1", "--out", str(folder)]) == 0
    return folder / "0"


@pytest.mark.slow
def test_the_card_shows_curve_smoothness_and_landscape(run, server):
    address, notes = hub.push_run(run, "me/td3", episodes=1)
    files = server.files["me/td3"]
    assert address.endswith("/me/td3")
    assert not notes
    assert all(files[f"pictures/{name}.png"][1:4] == b"PNG" for name in ("curve", "smoothness", "landscape"))
    card = files["README.md"].decode()
    assert "![Q over actions" in card
    assert "Smoothness (lower is smoother)" in card


def test_a_run_comes_back_as_it_went(run, server, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "_draw_pictures", lambda *_: ([], ["no pictures"]))
    earlier = json.dumps({"run.json": "0", "old.npz": "0"}).encode()
    theirs = {".gitattributes": b"", "notes.txt": b"of the owner", "owner.json": b"{}"}
    server.files["me/td3"] = theirs | {"old.npz": b"", "pictures/curve.png": b"", "digests.json": earlier}
    assert main(["push", str(run), "--repo", "me/td3", "--episodes", "1"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("no pictures\nhttp")
    assert "/me/td3: qs.load('hub:me/td3'), or qscape pull me/td3" in out
    (save,) = sorted(run.glob("saves/*"))[-1:]
    kept = {"run.json", "metrics.jsonl", "evaluations.csv"}
    kept |= {str(file.relative_to(run)) for file in (*save.glob("*"), *run.glob("inspect/*"))}
    assert server.files["me/td3"].keys() == kept | {"README.md", "digests.json", *theirs}
    assert 'qs.load("hub:me/td3")' in server.files["me/td3"]["README.md"].decode()
    obs = qs.load(run).adapter.reset()[0]
    np.testing.assert_array_equal(qs.load("hub:me/td3").predict(obs)[0], qs.load(run).predict(obs)[0])
    assert main(["pull", "me/td3"]) == 0
    assert all((Path("runs/hub/me/td3") / name).read_bytes() == (run / name).read_bytes() for name in kept)
    assert main(["pull", "me/td3"]) == 2
    assert "exists; choose another --out" in capsys.readouterr().err


def test_shards_of_a_replay_are_files_of_a_run(run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    shards = max((folder / "saves").glob("0*")) / "replay.orbax"
    (shards / "d").mkdir(parents=True)
    for name in ("manifest.ocdbt", "d/0f3a", "_METADATA", "made.py"):
        (shards / name).write_text(name)
    sent = {file.relative_to(folder).as_posix(): "" for file in hub._files_of(folder)}
    found = {name.partition(".orbax/")[2] for name in sent if ".orbax/" in name}
    assert found == {"manifest.ocdbt", "d/0f3a", "_METADATA"}
    assert hub._is_listing(sent)
    for wrong in ("replay.orbax/made.py", "d/0f3a", "x.orbax/../../y", "x.orbax"):
        assert not hub._is_listing({**sent, wrong: ""})


def test_two_pulls_at_once_do_not_touch_each_other(tmp_path, monkeypatch):
    cached, runs, copied = tmp_path / "cache", tmp_path / "runs", []
    names = ["run.json", "metrics.jsonl", "evaluations.csv"]
    cached.mkdir()
    for name, text in {name: name for name in names}.items() | {
        ("digests.json", json.dumps(dict.fromkeys(names, "")))
    }:
        (cached / name).write_text(text)

    def copy(source, target):
        """Copy; a second pull begins after the first file, and finds the disk full."""
        copied.append(target)
        count = len(copied)
        if count == 2:
            with refused("cannot-write", "No space left"):
                hub.pull_run("me/td3", runs / "td3")
        if count == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        target.write_bytes(source.read_bytes())

    monkeypatch.setattr(hub, "download_run", lambda name: cached)
    monkeypatch.setattr(hub.shutil, "copyfile", copy)
    hub.pull_run("me/td3", runs / "td3")
    assert [*runs.iterdir()] == [runs / "td3"]
    assert {file.name: file.read_text() for file in (runs / "td3").iterdir()} == {n: n for n in names}


@pytest.mark.parametrize("digests", [None, b'{"weights.npz": "0"}', b"[]"])
def test_a_repository_of_something_else_is_left_alone(run, server, monkeypatch, capsys, digests):
    monkeypatch.setattr(hub, "_draw_pictures", lambda *_: ([], []))
    theirs = {"weights.npz": b"1", "README.md": b"2", "config.yaml": b"3"}
    theirs |= {} if digests is None else {"digests.json": digests}
    server.files["me/other"] = dict(theirs)
    assert main(["push", str(run), "--repo", "me/other", "--episodes", "1"]) == 2
    err = capsys.readouterr().err
    assert f"me/other holds config.yaml and {len(theirs) - 2} more, but no pushed run" in err
    assert server.files["me/other"] == theirs
    server.files["me/new"] = {".gitattributes": b"", "README.md": b"of the hub"}
    assert main(["push", str(run), "--repo", "me/new", "--episodes", "1"]) == 0
    assert "qs.load" in server.files["me/new"]["README.md"].decode()


def pushed(server, **files: bytes) -> None:
    """Put a run with these files, by name, on the hub."""
    named = {name.replace("__", "/").replace("_dot_", "."): data for name, data in files.items()}
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in named.items()}
    server.files["me/bad"] = named | {hub.DIGESTS: json.dumps(digests).encode()}


def test_what_is_not_as_it_was_pushed_is_refused(server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pushed(server, run_dot_json=b"{}", **{"policy[0]_dot_onnx": b"1"})  # no pattern
    assert (hub.download_run("me/bad") / "policy[0].onnx").read_bytes() == b"1"
    pushed(server, run_dot_json=b"{}", metrics_dot_jsonl=b"1")
    server.files["me/bad"]["metrics.jsonl"] = b"2"
    with refused("damaged-save", "metrics.jsonl"):
        hub.pull_run("me/bad", Path("a"))
    del server.files["me/bad"]["metrics.jsonl"]
    with refused("damaged-save", "metrics.jsonl"):
        hub.pull_run("me/bad", Path("a"))
    for name in ("weights.pkl", "../a.json", "/a.json", "run.py", "a\\..\\..\\b.json"):
        server.files["me/bad"][hub.DIGESTS] = json.dumps({"run.json": "0", name: "0"}).encode()
        with refused("unreachable", "files"):
            hub.pull_run("me/bad", Path("a"))
    server.files["me/other"] = {"README.md": b"a model of something else"}
    for name in ("me/other", "me/nothing"):
        with pytest.raises(RunError, match=f"hub:{name} cannot be fetched"):
            qs.load(f"hub:{name}")
    assert not Path("a").exists()


def test_a_hub_that_refuses_or_is_away_loses_nothing(run, server, monkeypatch, capsys):
    monkeypatch.setattr(hub, "_draw_pictures", lambda *_: ([], []))
    before = sorted(p.name for p in run.rglob("*"))
    server.refuses = True
    assert main(["push", str(run), "--repo", "me/td3", "--episodes", "1"]) == 1
    assert "me/td3 was not pushed (" in capsys.readouterr().err
    reach(monkeypatch, 9)
    assert main(["push", str(run), "--repo", "me/td3", "--episodes", "1"]) == 1
    assert "the run is unchanged" in capsys.readouterr().err
    assert main(["pull", "me/td3"]) == 1
    assert "hub:me/td3 cannot be fetched (" in capsys.readouterr().err
    assert sorted(p.name for p in run.rglob("*")) == before


def test_pushing_needs_a_repository_a_package_and_a_token(run, monkeypatch, capsys):
    assert main(["push", str(run)]) == 2
    assert "add --repo OWNER/NAME" in capsys.readouterr().err
    assert main(["pull", "td3"]) == 2
    assert (
        "'td3' names no run on the hub; write OWNER/NAME or OWNER/NAME@REVISION." in capsys.readouterr().err
    )
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with refused("missing-argument", "token"):
        hub.push_run(run, "me/td3")
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with refused("missing-package", "qscape[hub]"):
        qs.load("hub:me/td3")
