"""The blocking call to servers that we started."""

import http.server
import socket
import threading
from contextlib import contextmanager

import pytest

from tunegate.serve import load_counters, servers
from tunegate.serve.plain_http import call


def test_a_redirect_is_a_reply_and_takes_the_key_nowhere():
    seen = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            seen.append(self.path)
            self.send_response(302)
            self.send_header("Location", "/elsewhere")
            self.end_headers()

        def log_message(self, *_):
            """Nothing on standard error."""

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        reply = call(f"http://127.0.0.1:{server.server_address[1]}/health", key="sk-secret")
        server.shutdown()
    assert (reply.status, reply.headers["location"], seen) == (302, "/elsewhere", ["/health"])


@contextmanager
def answering(raw):
    """A server that answers each request with these bytes and hangs up: its address."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve():
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(65536)
                    connection.sendall(raw)

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        listening.shutdown(socket.SHUT_RDWR)


CUT = b"HTTP/1.1 %d X\r\nContent-Length: 100\r\n\r\n{"
ODD = [CUT % 200, CUT % 503, b"SSH-2.0-OpenSSH_9.6\r\n", b"HTTP/1.1 200 OK\r\nA: " + 70_000 * b"a", b"\x00\xff\r\n\r\n"]


@pytest.mark.parametrize("raw", ODD)
def test_an_answer_that_is_cut_off_or_no_http_is_none(raw):
    """It ended the supervisor, `ft serve status` and a load test that was all but done: http.client's errors are no OSError."""
    with answering(raw) as url:
        with pytest.raises(OSError, match=r"."):
            call(f"{url}/metrics")
        assert servers.health(url, "id-1")[0] == "silent"
        assert load_counters.read(f"{url}/v1", None) is None
