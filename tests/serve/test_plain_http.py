"""The blocking call to servers that we started."""

import http.server
import threading

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
