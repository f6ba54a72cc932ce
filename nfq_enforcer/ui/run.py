"""Run of the service map: listens, prints the address of the page, and serves until the user ends it."""

import asyncio
import logging
import signal
from collections.abc import Callable
from pathlib import Path

from aiohttp import web

from nfq_enforcer import input_file
from nfq_enforcer.errors import NfqError
from nfq_enforcer.input_file import SETTINGS_SIZE
from nfq_enforcer.ui import access
from nfq_enforcer.ui.access import Listen, Token
from nfq_enforcer.ui.server import MapServer

_SHUTDOWN = 1.0  # s for open streams to end

Print = Callable[[str], None]


def run(socket: Path, listen_text: str, token_file: Path | None, print_line: Print) -> None:
    """Serve the map of the agent at ``socket`` until SIGINT or SIGTERM; raise NfqError if the address is in use."""
    listen = access.parse_listen(listen_text)
    token = _token(listen, token_file)
    logging.getLogger("aiohttp").setLevel(logging.ERROR)
    asyncio.run(serve(socket, listen, token, generated=token_file is None, print_line=print_line))


async def serve(socket: Path, listen: Listen, token: str | None, *, generated: bool, print_line: Print) -> None:
    """Serve until a signal ends it; print the address once the server listens."""
    ended = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    server = MapServer(socket, listen, Token(token) if token else None)
    runner = web.AppRunner(server.application(), access_log=None, shutdown_timeout=_SHUTDOWN)
    await runner.setup()
    try:
        site = web.TCPSite(runner, str(listen.address), listen.port)
        try:
            await site.start()
        except OSError as error:
            reason = error.strerror or str(error)
            raise NfqError(
                f"cannot listen on {listen.address} port {listen.port}: {reason}; choose another --listen"
            ) from None
        port = runner.addresses[0][1]
        print_line(f"service map: {listen._replace(port=port).url(token if generated else None)}")
        if token and not generated:
            print_line("the page asks for the token in the file")
        await ended.wait()
    finally:
        await runner.cleanup()


def _token(listen: Listen, file: Path | None) -> str | None:
    """Return the token of the file, else a new one if the address needs one."""
    if file is not None:
        text = input_file.read(file, SETTINGS_SIZE).decode("ascii", "replace")
        return access.read_token(text, f"--token-file {file}")
    return access.new_token() if listen.needs_token else None
