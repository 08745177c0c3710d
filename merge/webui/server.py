"""The page on an address: Gradio behind the gate, served by uvicorn."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

from ..errors import OutputError, UsageError
from ..messages import tr
from .gate import LOOPBACK, App, Gate
from .merges import Merges
from .root import Root
from .talker import Talker

# What Gradio reads when it is imported: nothing is sent home, nothing is kept in the browser.
_SWITCHES = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "GRADIO_RUN_HISTORY": "False",
    "GRADIO_SSR_MODE": "False",
    "GRADIO_MCP_SERVER": "False",
}


def parse_login(text: str) -> tuple[str, str]:
    """Split ``USER:PASSWORD``. Raises ``UsageError``, which does not repeat it."""
    user, _, password = text.strip("\r\n").partition(":")
    if not user or not password:
        raise UsageError(
            tr("name and password cannot be read"),
            expected=tr("one line USER:PASSWORD, neither of them empty"),
        )
    return user, password


def require_login(host: str, login: tuple[str, str] | None) -> None:
    """Raises ``UsageError`` for a page that other machines can reach without a password."""
    if host not in LOOPBACK and login is None:
        raise UsageError(
            tr("other machines could use this page without a password"),
            expected=tr("--auth_file together with --host {host}", host=host),
            remedy=tr("leave --host out, or give a file with one line USER:PASSWORD"),
        )


def serve(
    root: Root,
    host: str,
    port: int,
    login: tuple[str, str] | None,
    language: str | None,
    on_start: Callable[[str], None],
) -> None:
    """Serve the page until the process is interrupted; merges that go on are then interrupted too.

    ``on_start`` is called with its address when it can be opened. Raises ``UsageError`` where
    Gradio is missing, ``OutputError`` for an address that cannot be had.
    """
    require_login(host, login)
    os.environ.update(_SWITCHES)
    with (
        closing(_listen(host, port)) as listening,
        closing(Merges(root)) as merges,
        closing(Talker(root.folder)) as talker,
    ):
        app = Gate(_make_app(root, merges, talker, language), login)
        name = f"[{host}]" if ":" in host else host
        on_start(f"http://{name}:{listening.getsockname()[1]}/")
        _run(app, listening)


def _run(app: Gate, listening: socket.socket) -> None:
    """Answer requests until Ctrl-C or SIGTERM, which is the ordinary end of a page."""
    import uvicorn

    class Server(uvicorn.Server):
        @contextmanager
        def capture_signals(self) -> Iterator[None]:
            """uvicorn's own raises the signal again at the end, which would then end the merges."""
            before = {
                number: signal.signal(number, self.handle_exit)
                for number in (signal.SIGINT, signal.SIGTERM)
            }
            try:
                yield
            finally:
                for number, handler in before.items():
                    signal.signal(number, handler)

    config = uvicorn.Config(
        app, log_level="warning", server_header=False, timeout_graceful_shutdown=1
    )
    Server(config).run(sockets=[listening])


def _make_app(root: Root, merges: Merges, talker: Talker, language: str | None) -> App:
    try:
        import gradio
        from fastapi import FastAPI
    except ImportError:
        raise UsageError(
            tr("the page needs Gradio, which is not installed"),
            remedy="pip install 'chinese-llama-merge[webui]'",
        ) from None
    from .look import CSS, make_theme
    from .page import make_page

    page = make_page(root, merges, talker, language)
    page.has_launched = True  # else Gradio takes any path in a request for its own file
    app: App = gradio.mount_gradio_app(
        FastAPI(docs_url=None, redoc_url=None, openapi_url=None),
        page,
        path="",
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        mcp_server=False,
        enable_monitoring=False,
        allowed_paths=[],
        max_file_size=0,
        show_error=False,
        theme=make_theme(),
        css=CSS,
    )
    return app


def _listen(host: str, port: int) -> socket.socket:
    listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        if sys.platform != "win32":  # there it would let two servers have one address
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen()
    except (OSError, OverflowError) as error:
        listening.close()
        raise OutputError(
            tr("the page cannot listen on that address"),
            expected=tr("an address of this machine, and a port that is free"),
            found=f"{host}:{port}: {error}",
            remedy=tr("give another --port, or --port 0 for any that is free"),
        ) from None
    return listening
