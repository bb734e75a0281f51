"""A real S3 server in a process of its own: moto's, beside this Python or at $MOTO_SERVER."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest

BUCKET = "weir"
# Any will do until `refusing`.
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_EC2_METADATA_DISABLED": "true"}


class S3:
    """uri: of a folder in the bucket that is there, or in another."""

    def __init__(self, port):
        self._port = port

    def uri(self, folder, bucket=BUCKET):
        return f"s3://{bucket}/{folder}?endpoint_override=127.0.0.1:{self._port}&scheme=http&region=us-east-1"

    def files(self, folder):
        """Names of all files below a folder, from there on."""
        from pyarrow.fs import FileSelector, FileSystem

        filesystem, path = FileSystem.from_uri(self.uri(folder))
        found = filesystem.get_file_info(FileSelector(path, recursive=True, allow_not_found=True))
        return sorted(each.path.removeprefix(f"{path}/") for each in found if each.is_file)

    @contextmanager
    def refusing(self):
        """Within, the server knows nobody's credentials."""
        try:
            self._asks_from(b"0")
            yield
        finally:
            self._asks_from(b"inf")

    def _asks_from(self, request):
        """From which request on, counted from here, credentials are looked at."""
        url = f"http://127.0.0.1:{self._port}/moto-api/reset-auth"
        headers = {"Content-Type": "text/plain"}
        urllib.request.urlopen(urllib.request.Request(url, request, headers, method="POST")).close()


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def serving():
    """A server with one empty bucket, and its credentials in the environment."""
    command = os.environ.get("MOTO_SERVER") or shutil.which("moto_server", path=Path(sys.executable).parent)
    if command is None:
        pytest.skip("needs an S3 server: pip install 'moto[server]>=5.2.5'")
    port = _free_port()
    server = subprocess.Popen(
        [command, "-H", "127.0.0.1", "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        request = urllib.request.Request(f"http://127.0.0.1:{port}/{BUCKET}", method="PUT")
        for _ in range(300):
            try:
                urllib.request.urlopen(request).close()
                break
            except OSError:
                assert server.poll() is None, "the S3 server ended"
                time.sleep(0.1)
        with pytest.MonkeyPatch.context() as patch:
            for name, value in CREDENTIALS.items():
                patch.setenv(name, value)
            yield S3(port)
    finally:
        server.kill()
        server.wait()
