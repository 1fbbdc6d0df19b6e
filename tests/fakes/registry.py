"""A FAKE image registry on loopback: the pull half of the registry's HTTP API (v2), with one tiny image.

It stands in for Docker Hub, which cannot be counted on in tests; the engine that pulls from it is real.
"""

from __future__ import annotations

import gzip
import hashlib
import http.server
import io
import json
import tarfile
import threading
from types import TracebackType

MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"


def _digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


class FakeRegistry:
    """``with FakeRegistry(arch) as registry: registry.image`` is a name that the engine can pull.

    Args:
        architecture: the engine's, such as amd64.
        refuse: answers, but has no image (as a registry does that wants a login, or counts pulls).
    """

    def __init__(self, architecture: str, *, refuse: bool = False) -> None:
        layer = self._layer({"from-the-registry": b"yes\n"})
        config = json.dumps(
            {"architecture": architecture, "os": "linux", "config": {},
             "rootfs": {"type": "layers", "diff_ids": [_digest(layer)]}}
        ).encode()  # fmt: skip
        packed = gzip.compress(layer, mtime=0)
        self._blobs = {_digest(config): config, _digest(packed): packed}
        self._manifest = json.dumps({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {"mediaType": "application/vnd.docker.container.image.v1+json", "size": len(config),
                       "digest": _digest(config)},
            "layers": [{"mediaType": "application/vnd.docker.image.rootfs.diff.tar.gzip", "size": len(packed),
                        "digest": _digest(packed)}],
        }).encode()  # fmt: skip
        self._refuse = refuse
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_port}/v2/"
        self.image = f"127.0.0.1:{self._server.server_port}/fake-debian:12"

    def __enter__(self) -> FakeRegistry:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    @staticmethod
    def _layer(files: dict[str, bytes]) -> bytes:
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w") as packed:
            for name, data in files.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(data)
                packed.addfile(entry, io.BytesIO(data))
        return stream.getvalue()

    def _answer(self, path: str) -> tuple[int, str, bytes]:
        if path == "/v2/":
            return 200, "application/json", b"{}"
        kind, _, name = path.rpartition("/")
        if self._refuse or not path.startswith("/v2/fake-debian/"):
            return 404, "application/json", b'{"errors": [{"code": "MANIFEST_UNKNOWN", "message": "manifest unknown"}]}'
        if kind.endswith("/manifests"):
            return 200, MANIFEST, self._manifest
        if name in self._blobs:
            return 200, "application/octet-stream", self._blobs[name]
        return 404, "application/json", b"{}"

    def _handler(self) -> type[http.server.BaseHTTPRequestHandler]:
        answer = self._answer

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, kind, data = answer(self.path)
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(data)))
                self.send_header("Docker-Content-Digest", _digest(data))
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(data)

            do_HEAD = do_GET

            def log_message(self, *_: object) -> None:
                pass

        return Handler
