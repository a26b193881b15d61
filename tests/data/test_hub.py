"""The download code against a hub of our own on 127.0.0.1."""

import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

import huggingface_hub.constants as constants
import numpy as np
import pytest

from resode.data import hub, load
from resode.data.hub import Pin
from resode.errors import InputError, IntegrityError, ResourceError
from tests.data.conftest import encoded, random_pixels, write_parquet

PIXELS = random_pixels(6)
COMMIT, CONVERTED = "1" * 40, "2" * 40


class Hub:
    """Data sets by name and revision; answers as the hub does, and counts what it is asked."""

    def __init__(self, folder):
        self.folder, self.asked = folder, []
        self.files: dict[tuple[str, str], dict[str, bytes]] = {}
        self.etags: dict[str, str] = {}
        self.status: dict[str, int] = {}

    def publish(self, name, files, revision="main", commit=COMMIT):
        self.files[name, revision] = self.files[name, commit] = files
        self.commits = {"main": COMMIT, "refs/convert/parquet": CONVERTED}

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        parts = unquote(path.split("?")[0]).strip("/").split("/")
        name = "/".join(parts[2:4] if parts[0] == "api" else parts[1:3])
        if name in self.status:
            return self.status[name], {"X-Error-Code": "GatedRepo", "X-Error-Message": "Ask for access"}, b""
        if not any(key[0] == name for key in self.files):
            return 404, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}, b""
        if parts[0] == "api":
            revision = "/".join(parts[5:]) or "main"
            if (name, revision) not in self.files:
                return 404, {"X-Error-Code": "RevisionNotFound", "X-Error-Message": "No revision"}, b""
            siblings = [{"rfilename": file} for file in self.files[name, revision]]
            listing = {"id": name, "sha": self.commits[revision], "siblings": siblings}
            return 200, {"Content-Type": "application/json"}, json.dumps(listing).encode()
        revision, file = parts[4], "/".join(parts[5:])
        if file not in self.files.get((name, revision), {}):
            return 404, {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}, b""
        content = self.files[name, revision][file]
        etag = self.etags.get(file, hashlib.sha256(content).hexdigest())
        return 200, {"X-Repo-Commit": revision, "ETag": f'"{etag}"', "X-Linked-Etag": f'"{etag}"'}, content


@pytest.fixture
def server(tmp_path, monkeypatch):
    served = Hub(tmp_path)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            served.asked.append((self.command, self.path))
            status, headers, body = served.answer(self.path)
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
        served.address = f"http://127.0.0.1:{http.server_port}"
        point_at(monkeypatch, served.address, tmp_path)
        yield served
        http.shutdown()


def point_at(monkeypatch, address, tmp_path):
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


def parquet_bytes(folder, rows, labels) -> bytes:
    files = [encoded(PIXELS[row]) for row in rows]
    return write_parquet(folder / "made.parquet", files, label=labels).read_bytes()


@pytest.fixture
def published(server, tmp_path):
    """A data set of four training and two test images."""
    files = {
        "README.md": b"about",
        "plain/train-0.parquet": parquet_bytes(tmp_path, [0, 1], [0, 1]),
        "plain/train-1.parquet": parquet_bytes(tmp_path, [2, 3], [0, 1]),
        "plain/test-0.parquet": parquet_bytes(tmp_path, [4, 5], [0, 1]),
    }
    server.publish("owner/set", files)
    return files


def pin(files, **hashes) -> Pin:
    listed = {
        path: hashlib.sha256(content).hexdigest() for path, content in files.items() if "parquet" in path
    }
    return Pin("owner/set", COMMIT, {**listed, **hashes})


def test_any_parquet_data_set_by_its_address(published, server):
    data = load("hf://owner/set")
    assert np.array_equal(data.train.pixels, PIXELS[:4])
    assert np.array_equal(data.test.pixels, PIXELS[4:])
    assert data.name == f"hf://owner/set@{COMMIT}"
    assert not any("README" in path for _, path in server.asked)


def test_another_format_is_taken_as_the_hub_converted_it(server, tmp_path):
    server.publish("owner/pictures", {"train/cat/0.png": b"", "README.md": b""})
    converted = {
        "default/train/0000.parquet": parquet_bytes(tmp_path, [0, 1], [0, 1]),
        "default/test/0000.parquet": parquet_bytes(tmp_path, [2], [0]),
    }
    server.publish("owner/pictures", converted, "refs/convert/parquet", CONVERTED)
    data = load("hf://owner/pictures")
    assert (len(data.train), len(data.test)) == (2, 1)


def test_a_commit_is_a_data_set_for_ever(published, server, tmp_path, monkeypatch):
    old = load("hf://owner/set")
    newer = {"train.parquet": parquet_bytes(tmp_path, [5, 4], [0, 1])}
    server.publish("owner/set", newer, commit="3" * 40)
    server.commits = {"main": "3" * 40, COMMIT: COMMIT}
    assert load("hf://owner/set").name.endswith("@" + "3" * 40)
    assert load(old.name).fingerprint == old.fingerprint
    monkeypatch.setattr(hub, "_query_hub", lambda *_: (_ for _ in ()).throw(ResourceError("unreachable")))
    assert load(old.name).fingerprint == old.fingerprint
    with pytest.raises(ResourceError, match="unreachable"):
        load("hf://owner/set")
    assert hub.unpinned(old.name) == "hf://owner/set"
    assert hub.unpinned(f"hf://owner/set@{COMMIT}/folder") == "hf://owner/set/folder"


def test_no_parquet_at_all(server):
    server.publish("owner/text", {"README.md": b""})
    with pytest.raises(InputError, match="has no parquet files; download it"):
        load("hf://owner/text")


def test_several_sets_in_one_need_a_folder(server, tmp_path):
    files = {f"{name}/train.parquet": parquet_bytes(tmp_path, [k], [0]) for k, name in enumerate(("a", "b"))}
    server.publish("owner/many", files)
    with pytest.raises(InputError, match=r"hf://owner/many holds several data sets \(a, b\)"):
        load("hf://owner/many")
    assert np.array_equal(load("hf://owner/many/b").train.pixels, PIXELS[1:2])


@pytest.mark.parametrize("address", ["hf://", "hf://owner", "hf://owner/set/../../x y", "hf:///set"])
def test_an_address_of_another_form(address):
    with pytest.raises(InputError, match="write hf://OWNER/NAME"):
        load(address)


def test_a_pinned_set_needs_no_hub_the_second_time(published, server, monkeypatch, tmp_path):
    first = hub.read("set", pin(published))
    server.asked.clear()
    point_at(monkeypatch, "http://127.0.0.1:9", tmp_path)
    assert np.array_equal(hub.read("set", pin(published)).train.labels, first.train.labels)
    assert server.asked == []


def test_a_file_that_is_not_the_pinned_one(published, tmp_path):
    with pytest.raises(IntegrityError, match=r"train-0\.parquet is not plain/train-0\.parquet as published"):
        hub.read("set", pin(published, **{"plain/train-0.parquet": "0" * 64}))


@pytest.mark.parametrize("algorithm", ["sha256", "git"])
def test_without_a_pinned_hash_the_hubs_own_counts(published, server, tmp_path, algorithm):
    path = "plain/train-0.parquet"
    if algorithm == "git":
        content = published[path]
        server.etags[path] = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    unknown = Pin("owner/set", COMMIT, dict.fromkeys(pin(published).files))
    assert len(hub.read("set", unknown).train.labels) == 4
    (file,) = (tmp_path / "hub").rglob("train-0.parquet")
    blob = file.resolve()
    blob.write_bytes(blob.read_bytes()[:-1] + b"?")
    with pytest.raises(IntegrityError, match="delete it to download it again"):
        hub.read("set", unknown)


def test_a_download_that_was_damaged_on_its_way(published, server):
    server.etags["plain/train-0.parquet"] = "0" * 64
    with pytest.raises(IntegrityError, match="as published"):
        load("hf://owner/set")


def test_what_the_hub_does_not_have(published, server):
    with pytest.raises(InputError, match="the hub has no such public data set or file: owner/other"):
        load("hf://owner/other")
    with pytest.raises(InputError, match="the hub has no such public data set or file: owner/set"):
        hub.read("set", Pin("owner/set", COMMIT, {"train-9.parquet": None}))
    server.status["owner/private"] = 403
    server.publish("owner/private", {})
    with pytest.raises(InputError, match="requires a login; run `hf auth login`"):
        load("hf://owner/private")


@pytest.mark.parametrize("data", ["cifar10", "cifar100", "stl10", "mnist", "fashion_mnist", "hf://owner/set"])
def test_an_unreachable_hub_says_so_at_once(monkeypatch, tmp_path, data):
    point_at(monkeypatch, "http://127.0.0.1:9", tmp_path)
    slept = []
    monkeypatch.setattr(time, "sleep", slept.append)
    with pytest.raises(
        ResourceError, match=r"cannot be downloaded from the hub .*--data FOLDER.*RESODE_DATA.*digits"
    ) as caught:
        load(data)
    assert sum(slept) < 5  # seconds; the retries of a patient download wait 20 and more
    assert caught.value.exit_code == 5
    assert len(caught.value.messages) == 1
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("data", ["cifar10", "hf://owner/set"])
def test_a_silent_hub_is_given_up_soon(monkeypatch, tmp_path, data):
    monkeypatch.setattr(hub, "TIMEOUT", 0.2)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        point_at(monkeypatch, f"http://127.0.0.1:{silent.getsockname()[1]}", tmp_path)
        slept = []
        monkeypatch.setattr(time, "sleep", slept.append)
        with pytest.raises(ResourceError, match="cannot be downloaded from the hub"):
            load(data)
    assert sum(slept) < 5


def test_the_address_of_the_hub_is_an_environment_variable(published, server, tmp_path):
    """What a user behind a mirror does, in a process of its own."""
    environment = {
        **os.environ,
        "HF_ENDPOINT": server.address,
        "HF_HOME": str(tmp_path / "home"),
        "RESODE_CACHE": str(tmp_path / "cache"),
    }
    code = "from resode.data import load; data = load('hf://owner/set'); print(data.fingerprint)"
    ran = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=900, check=True
    )
    assert ran.stdout.strip() == load("hf://owner/set").fingerprint
