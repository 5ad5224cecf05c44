"""What the tests of data share: an empty folder to write to, and a web server."""

import http.server
import threading
import types

import pytest


@pytest.fixture
def out(tmp_path):
    """An empty folder to prepare in: whatever is left behind can be seen there."""
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


@pytest.fixture
def server():
    """A web server on this machine.  files: {path: bytes}; ranges: it knows Range; cut_at: where it breaks off."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            body = state.files.get(self.path)
            start = 0
            state.requests.append(self.headers.get("Range"))
            if body is None:
                return self.send_error(404)
            if state.ranges and self.headers.get("Range"):
                start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
                if start >= len(body):
                    return self.send_error(416)
                self.send_response(206)
            else:
                self.send_response(200)
            self.send_header("Content-Length", str(len(body) - start))
            self.end_headers()
            self.wfile.write(body[start : state.cut_at])

        def log_message(self, *arguments):
            pass

    state = types.SimpleNamespace(files={}, ranges=True, cut_at=None, requests=[])
    web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.address = f"http://127.0.0.1:{web.server_port}"
    threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield state
    web.shutdown()
    web.server_close()
