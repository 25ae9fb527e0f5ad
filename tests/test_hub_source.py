"A dataset of the Hugging Face Hub as a source, against a server of this machine that speaks the Hub's protocol"
import http.server
import json
import threading
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from dho_nb.core.errors import DhoError
from dho_nb.core.remote import open_remote
from dho_nb.data.ingest import ingest
from test_ingest import as_parquet, content, photos  # noqa: F401, a fixture

REPO, SHA = "someone/flowers", "0123456789abcdef0123456789abcdef01234567"


class Hub(http.server.BaseHTTPRequestHandler):
    "Lists and serves the files of one dataset, as the Hub does"
    protocol_version, root = "HTTP/1.1", Path()
    def log_message(self, *rest): pass

    def _answer(self, code, data, **headers):
        data = data if isinstance(data, bytes) else json.dumps(data).encode()
        self.send_response(code)
        for name, value in {"Content-Length": len(data), "X-Repo-Commit": SHA, **headers}.items(): self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD": self.wfile.write(data)

    def _facts(self, path):
        name = path.relative_to(self.root).as_posix()
        return (dict(type="directory", path=name, oid=SHA, size=0) if path.is_dir()
                else dict(type="file", path=name, oid=SHA, size=path.stat().st_size))

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["paths"]
        self._answer(200, [self._facts(self.root/p) for p in asked if (self.root/p).exists()])

    def do_GET(self):
        path, api = unquote(urlsplit(self.path).path), f"/api/datasets/{REPO}"
        if path in (api, f"{api}/revision/main"): return self._answer(200, dict(id=REPO, sha=SHA, siblings=[]))
        if path.startswith(f"{api}/tree/main"):
            folder = self.root/path.removeprefix(f"{api}/tree/main").lstrip("/")
            found = folder.rglob("*") if "recursive=True" in self.path or "recursive=true" in self.path else folder.glob("*")
            return self._answer(200, [self._facts(p) for p in sorted(found)])
        file = self.root/path.removeprefix(f"/datasets/{REPO}/resolve/main/")
        if not path.startswith(f"/datasets/{REPO}/resolve/main/") or not file.is_file(): return self._answer(404, {}, **{"X-Error-Code": "RepoNotFound"})
        data = file.read_bytes()
        if not (span := self.headers.get("Range")): return self._answer(200, data, ETag=f'"{SHA}"')
        first, last = (int(n) if n else len(data) - 1 for n in span.removeprefix("bytes=").split("-"))
        self._answer(206, data[first:last + 1], **{"ETag": f'"{SHA}"', "Content-Range": f"bytes {first}-{min(last, len(data) - 1)}/{len(data)}"})

    do_HEAD = do_GET


@pytest.fixture
def hub(photos, tmp_path):
    "The address of a hub with one dataset in Parquet, and files beside it that belong to no dataset"
    (folder := tmp_path/"hub").mkdir()
    as_parquet(photos, folder)
    (folder/".gitattributes").write_text("")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Hub,), dict(root=folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_a_dataset_of_the_hub_gives_the_same_as_its_files(hub, photos, tmp_path, dho):
    ingest(str(photos), tmp_path/"straight"/"pool", side=8, mode="none")
    code, _, err = dho("data", "ingest", f"hf://datasets/{REPO}", tmp_path/"pool", "--side", 8, HF_ENDPOINT=hub)
    assert not code, err
    assert content(tmp_path/"pool") == content(tmp_path/"straight"/"pool")
    code, _, err = dho("data", "ingest", "hf://datasets/someone/nothing", tmp_path/"none", HF_ENDPOINT=hub)
    assert code and "hf://datasets/someone/nothing" in err and "Traceback" not in err


@pytest.mark.parametrize("name", ["", "datasets/", "datasets/a", "datasets/../x", "datasets/a b/c", "datasets/-a/b", "datasets/a--b/c", "datasets/a/" + "x"*97, "datasets/a/b..c", "//", "datasets/a//b"])
def test_an_address_that_names_no_dataset_is_refused_before_anything_is_asked(tmp_path, name):
    pytest.importorskip("huggingface_hub")
    with pytest.raises(DhoError, match="hf://datasets/USER/NAME"): ingest(f"hf://{name}", tmp_path/"pool", mode="none")


@pytest.mark.parametrize("name", ["datasets/a/b", "datasets/A_1/b.c-d@refs%2Fconvert%2Fparquet/x/*.parquet", "a/b", "buckets/a/b/c"])
def test_an_address_of_the_hub_is_taken(name): assert open_remote(f"hf://{name}")
