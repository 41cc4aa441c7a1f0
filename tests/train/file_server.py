"""An HTTP server on this machine, for the tests of what is downloaded."""

from __future__ import annotations

import http.server
import threading
from contextlib import contextmanager
from types import SimpleNamespace


@contextmanager
def serving(content):
    """A server: `url`, what it `sends`, how many bytes it `announces`, its `status`, and what was `asked`."""
    state = SimpleNamespace(sends=content, announces=len(content), status=200, asked=[])

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            state.asked.append(self.path)
            self.send_response(state.status)
            if state.announces is not None:
                self.send_header("Content-Length", str(state.announces))
            self.end_headers()
            self.wfile.write(state.sends)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        state.url = f"http://127.0.0.1:{running.server_port}/models"
        try:
            yield state
        finally:
            running.shutdown()
            thread.join()
