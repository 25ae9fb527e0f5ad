"Shards in an object store: a real server of S3's protocol, and connections to it that are cut"
import socket
import threading

import numpy as np
import pytest

from conftest import fails
from dho_nb.core import remote
from dho_nb.data import mirrors
from dho_nb.data.ingest import ingest, stream_images
from test_ingest import as_parquet, as_tar, content, photos  # noqa: F401, a fixture
from test_mirrors import array, numbers

pytest.importorskip("s3fs", reason="needs the extra s3: pip install 'dho_nb[s3]'")
moto = pytest.importorskip("moto.server", reason="needs a server of S3's protocol: pip install 'moto[server]'")


class Cutting:
    "Passes bytes on to a server, and closes connections after so many bytes of an answer, a number of times"
    def __init__(self, port):
        self.target, self.cuts, self.after, self.done = port, 0, 2000, 0
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.port = self.listening.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        while True:
            try: client = self.listening.accept()[0]
            except OSError: return
            server = socket.create_connection(("127.0.0.1", self.target))
            threading.Thread(target=self._pass, args=(client, server, False), daemon=True).start()
            threading.Thread(target=self._pass, args=(server, client, True), daemon=True).start()

    def _pass(self, source, to, answers):
        count = 0
        try:
            while data := source.recv(1 << 12):
                if answers and (count := count + len(data)) > self.after and self.done < self.cuts:
                    self.done += 1
                    to.sendall(data[:100])
                    break
                to.sendall(data)
        except OSError: pass
        for end in (source, to):
            try: end.shutdown(socket.SHUT_RDWR)
            except OSError: pass
            end.close()


@pytest.fixture(scope="module")
def bucket(photos, tmp_path_factory):
    "Tar shards and Parquet files in a bucket, behind a wire that can be cut; they lie in `bucket.local`, too"
    import s3fs
    server = moto.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    wire = Cutting(server.get_host_and_port()[1])
    wire.local = tmp_path_factory.mktemp("local")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in dict(AWS_ACCESS_KEY_ID="nobody", AWS_SECRET_ACCESS_KEY="none", AWS_DEFAULT_REGION="us-east-1",
                                AWS_ENDPOINT_URL=f"http://127.0.0.1:{wire.port}").items(): patch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        fs = s3fs.S3FileSystem()
        fs.mkdir("pool")
        for name, make in (("tar", as_tar), ("parquet", as_parquet)):
            fs.put(str(make(photos, wire.local/name)), f"pool/{name}", recursive=True)
        yield wire
    wire.listening.close()
    server.stop()


@pytest.mark.parametrize("source", ["tar/*.tar", "tar", "tar/pool-{000..002}.tar", "parquet/data/*.parquet"])
@pytest.mark.parametrize("cuts", [0, 1, 12])
def test_a_bucket_gives_the_same_dataset_as_a_folder_however_often_it_breaks_off(photos, bucket, tmp_path, monkeypatch, source, cuts):
    monkeypatch.setattr(remote, "PAUSE", .001)
    bucket.cuts, bucket.done = cuts, 0
    ingest(f"s3://pool/{source}", tmp_path/"pool", side=8, mode="none")
    bucket.cuts = 0
    ingest(str(photos), tmp_path/"straight"/"pool", side=8, mode="none")
    assert bucket.done == cuts and content(tmp_path/"pool") == content(tmp_path/"straight"/"pool")


def test_a_stream_over_a_cut_wire_is_the_local_one(bucket, monkeypatch):
    monkeypatch.setattr(remote, "PAUSE", .001)
    bucket.cuts, bucket.done = 12, 0
    pictures = lambda source: [(i.id, np.asarray(i.decode(0)).tobytes()) for i in stream_images(source)]
    found = pictures("s3://pool/tar/*.tar")
    assert bucket.done == 12 and len(found) == 90 and found == pictures(str(bucket.local/"tar"/"*.tar"))


@pytest.mark.parametrize("cuts", [0, 1, 12])
def test_a_store_in_a_bucket_is_read_over_a_wire_that_breaks_off(bucket, tmp_path, monkeypatch, cuts):
    import s3fs
    monkeypatch.setattr(remote, "PAUSE", .001)
    monkeypatch.setenv("DHO_CACHE", str(tmp_path/"cache"))
    bucket.cuts = 0
    numbers(tmp_path/"store", 600)
    s3fs.S3FileSystem().put(f"{tmp_path}/store/", f"pool/store{cuts}/", recursive=True)
    far = array(f"s3://pool/store{cuts}")
    assert not [*mirrors.local_place(f"s3://pool/store{cuts}").glob("*.npy")]
    bucket.after, bucket.cuts, bucket.done = 600, cuts, 0
    try: assert far[:][:, 0].tolist() == [*range(600)]
    finally: bucket.after, bucket.cuts = 2000, 0
    assert bucket.done == cuts


def test_what_a_bucket_refuses_is_a_sentence(bucket, tmp_path):
    fails(lambda: ingest("s3://elsewhere/*.tar", tmp_path/"pool"), "s3://elsewhere/*.tar")
    fails(lambda: ingest("s3://pool/nothing/*.tar", tmp_path/"pool"), "nothing/*.tar is neither a file")
