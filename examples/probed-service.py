"""A web server with two health checks: /healthz answers anybody, /check only a POST with the right word."""

import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Answer(BaseHTTPRequestHandler):
    """One request."""

    def do_GET(self) -> None:
        """Everything but /check."""
        self._answer(200 if self.path in ("/", "/healthz") else 404)

    def do_POST(self) -> None:
        """The check, which fails on demand: touch /tmp/probed/sick."""
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        known = self.headers.get("Authorization") == f"Bearer {os.environ['WORD']}"
        well = not (Path(__file__).parent / "sick").exists()
        self._answer(200 if known and well else 500 if known else 401)

    def _answer(self, code: int) -> None:
        text = f"replica {os.environ.get('DSTACK_RUN_NAME')} on {os.uname().nodename}\n".encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


if __name__ == "__main__":
    ThreadingHTTPServer(("", 8000), Answer).serve_forever()
