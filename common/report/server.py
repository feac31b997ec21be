"""Serves the report from the run's storage over HTTP."""

from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from common.errors import SettingsError
from common.run.storage import RunStorage

_KINDS = {
    "/": ("report.html", "text/html"),
    "/report.html": ("report.html", "text/html"),
    "/report.md": ("report.md", "text/markdown"),
}


def make_server(storage: RunStorage, address: str) -> ThreadingHTTPServer:
    """Serves the report at host:port (0: any). Raises a SettingsError if it is not usable."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name, kind = _KINDS.get(self.path.split("?")[0], ("", ""))
            if not name or not storage.exists(name):
                self.send_error(404)
                return
            content = storage.read_bytes(name)
            self.send_response(200)
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Requests are not logged."""

    host, port = address.rsplit(":", 1)
    try:
        return ThreadingHTTPServer((host, int(port)), Handler)
    except (OSError, OverflowError) as error:
        raise SettingsError(
            f"DISTILL_REPORT__SERVE={address!r}: {error}; choose another address"
        ) from None
