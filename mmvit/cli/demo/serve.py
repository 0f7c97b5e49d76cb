"""A page -> a server on this machine that ends at once when it is told to.

Served by uvicorn directly: gradio's own launcher asks the network whether it can be reached, and may offer a
tunnel. Everything that a browser may load comes from here; its policy says so.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from mmvit.errors import UserError, need

_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
    "media-src 'self' data: blob:; "
    "connect-src 'self' data: blob:; worker-src 'self' blob:; "
    "frame-ancestors 'none'"
)


@contextlib.contextmanager
def private_folder() -> Iterator[str]:
    """A folder for uploads, removed at the end; enter it before gradio is imported.

    gradio and `tempfile` keep their files in it.
    """
    with tempfile.TemporaryDirectory(prefix="mmvit-demo-") as folder:
        os.environ |= {
            "GRADIO_ANALYTICS_ENABLED": "False",
            "GRADIO_TEMP_DIR": os.path.join(folder, "uploads"),
            "GRADIO_RUN_HISTORY": "False",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }
        before, tempfile.tempdir = tempfile.tempdir, folder
        try:
            yield folder
        finally:
            tempfile.tempdir = before
            shutil.rmtree(folder, ignore_errors=True)


def open_port(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 = any free one.

    Raises:
        UserError: the port is taken or may not be used, or there is no such host.
    """
    if not 0 <= port <= 65535:
        raise UserError(f"--port {port} is no port: 1..65535, or 0 for any free one")
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=64)
    except socket.gaierror as error:
        raise UserError(f"--host {host} is no address of this machine ({error.strerror})") from None
    except OSError as error:
        why = os.strerror(error.errno) if error.errno else str(error)
        raise UserError(
            f"cannot serve on {host}:{port} ({why}): name another --port, or 0 for any free one"
        ) from None


def serve(
    page: Any,
    listening: socket.socket,
    *,
    theme: Any,
    css: str,
    max_bytes: int,
    routes: Mapping[str, Callable[[Any], Any]] | None = None,
) -> None:
    """Nothing; serves the page until the process is told to end (SIGINT or SIGTERM).

    Args:
        page: a `gradio.Blocks`.
        listening: from `open_port`.
        theme: the page's gradio theme.
        css: its style sheet.
        max_bytes: larger uploads are refused while they arrive.
        routes: further paths, and what answers a request (of starlette) for each; before the page's own.

    Raises:
        KeyboardInterrupt: it was ended with Ctrl-C.
    """
    gr, fastapi = need("gradio", "demo"), need("fastapi", "demo")
    uvicorn: Any = need("uvicorn", "demo")
    host, port = listening.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host

    class Server(uvicorn.Server):
        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            if self.started:
                print(f"mmvit-demo: http://{shown}:{port}/ (Ctrl-C ends it)", flush=True)

    outer = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @outer.middleware("http")
    async def policy(request: Any, call_next: Any) -> Any:
        response = await call_next(request)
        response.headers["Content-Security-Policy"] = _POLICY
        response.headers["Referrer-Policy"] = "no-referrer"
        return response

    for path, answer in (routes or {}).items():
        outer.add_route(path, answer, methods=["GET", "HEAD"])
    app = gr.mount_gradio_app(
        outer, page, path="/", server_name=host, server_port=port, footer_links=[], run_history=False,
        allowed_paths=[], show_error=True, max_file_size=max_bytes, ssr_mode=False, enable_monitoring=False,
        pwa=False, mcp_server=False, theme=theme, css=css,
    )  # fmt: skip
    # An open page keeps a connection for its events: it is not waited for.
    config = uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=0, ws="none")
    before = signal.signal(signal.SIGTERM, lambda *_: None)  # raised again by uvicorn after its shutdown
    try:
        Server(config).run(sockets=[listening])
    finally:
        signal.signal(signal.SIGTERM, before)
        listening.close()
