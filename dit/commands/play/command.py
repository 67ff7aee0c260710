"""`dit play`: serve the page to this machine, or to those that the flags let in."""

import os
import threading
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from dit.commands.play.actions import Player
from dit.commands.play.uploads import MOST_BYTES
from dit.config import PlayConfig
from dit.config.validation import require_use
from dit.distributed.ranks import Ranks
from dit.errors import UserError
from dit.runs.card import ModelCard
from dit.sampling.load import load_to_sample
from dit.sampling.pipeline import build_pipeline
from dit.sampling.resolve import has_null_class
from dit.training.monitoring.previews import CFG_SCALE, preview_settings

GRADIO = "6.31"  # the version whose interface is used
FIRST_PORT = 7860
WAITING = 20  # visitors in the queue; others are asked to come back
OWN_HOST_ONLY = (
    "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; frame-ancestors 'self'; "
    "form-action 'self'; base-uri 'self'"
)
"""Content security policy: the page loads nothing from elsewhere, whatever a library asks for."""

Message = MutableMapping[str, Any]


def play(config: PlayConfig, ranks: Ranks) -> None:
    """Serve the page until Ctrl-C.

    Raises:
        UserError: gradio is not installed, flags do not fit the run, or the port is taken.
    """
    require_gradio()
    run = load_to_sample(config.run, ranks.device, config)
    resolved = with_scale(config, run.card)
    # flags that do not fit the run are refused before the page is there
    build_pipeline(run, resolved)
    ranks.on_main(lambda: _serve_until_interrupted(Player(run, resolved), resolved))


def with_scale(config: PlayConfig, card: ModelCard) -> PlayConfig:
    """Return the flags with a scale of guidance: unless given, that of the run's previews.

    Raises:
        UserError: Flags of guidance for a run whose previews have none.
    """
    if config.cfg_scale is not None:
        return config
    scale = CFG_SCALE if config.guide else preview_settings(card).cfg_scale
    do = "pass --cfg-scale 2" if has_null_class(card) else ""
    given = "for a run whose previews are not guided"
    flags = ("cfg_interval", "cfg_channels")
    require_use(config, flags, scale != 1, given, "guidance", do)
    return replace(config, cfg_scale=scale)


def require_gradio() -> None:
    """Refuse to go on without the library that draws the page, or with one of another interface."""
    wanted = f"gradio {GRADIO} or a later {GRADIO[0]}.x"
    install = f"pip install 'gradio>={GRADIO},<{int(GRADIO[0]) + 1}'"
    try:
        found = version("gradio")
    except PackageNotFoundError:
        given = "dit play without gradio, which draws the page"
        raise UserError(given, wanted, f"pip install gradio, or {install}") from None
    major, minor = (int(part) for part in found.split(".")[:2])
    if not (major == int(GRADIO[0]) and minor >= int(GRADIO[2:])):
        raise UserError(f"dit play with gradio {found}", wanted, install)


def _serve_until_interrupted(player: Player, config: PlayConfig) -> None:
    page, address = serve(player, config)
    print(f"play at {address} (Ctrl-C ends it)", flush=True)
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        print("\nclosed")
    finally:
        page.close(verbose=False)


def serve(player: Player, config: PlayConfig) -> tuple[Any, str]:
    """Start the server in a thread; return the page and its address."""
    # read when gradio is imported: no telemetry, no look for a newer version
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    from starlette.middleware import Middleware

    from dit.commands.play.page import CSS, Page, theme

    page = Page(player).build()
    page.queue(max_size=WAITING, default_concurrency_limit=1)
    try:
        _, local, shared = page.launch(
            server_name=config.host,
            server_port=config.port,
            share=config.share,
            prevent_thread_lock=True,
            quiet=True,
            show_error=False,
            max_file_size=MOST_BYTES,
            footer_links=[],
            run_history=False,
            enable_monitoring=False,
            ssr_mode=False,
            mcp_server=False,
            theme=theme(),
            css=CSS,
            app_kwargs={"middleware": [Middleware(OwnHostOnly)]},
        )
    except OSError as error:
        raise UserError(
            f"port {config.port or FIRST_PORT} of {config.host} cannot be listened at ({error})",
            "a free port, and an address of this machine",
            "pass another --port or --host",
        ) from error
    return page, shared or local


class OwnHostOnly:
    """Middleware that forbids the browser to load anything from other hosts."""

    def __init__(self, app: Callable[..., Awaitable[None]]):
        self.app = app

    async def __call__(self, scope: Message, receive: Any, send: Any) -> None:
        async def send_with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                policy = (b"content-security-policy", OWN_HOST_ONLY.encode())
                message["headers"] = [*message.get("headers", ()), policy]
            await send(message)

        await self.app(scope, receive, send_with_policy)
