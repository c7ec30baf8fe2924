"""The painter's server: one painting, on 127.0.0.1, behind an address that nobody can guess."""

import errno
import hmac
import re
import secrets
import socket
import threading
import webbrowser
from collections.abc import Callable, Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from latentseg.app.actions import Drawings, Painter, Refused, check_draws
from latentseg.app.painting import Painting, start_painting
from latentseg.app.previews import Previewer, Previews
from latentseg.errors import InputError, LatentsegError
from latentseg.files import locked
from latentseg.generators.protocols import Generator
from latentseg.interrupts import Terminated
from latentseg.plain_data import parse_json
from latentseg.progress import say

try:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.requests import ClientDisconnect, Request
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route
    from starlette.types import ASGIApp, Message, Receive, Scope, Send
except ImportError as missing:
    raise InputError(
        f"The painter needs the extra `app`: pip install 'latentseg[app]' ({missing})."
    ) from missing

ADDRESS = "127.0.0.1"
PAGE = resources.files("latentseg.app") / "page"
FILES = {  # all that is served besides the painting; nothing is looked up by path
    "": ("painter.html", "text/html"),
    "painter.css": ("painter.css", "text/css"),
    "painter.js": ("painter.js", "text/javascript"),
    "stage.js": ("stage.js", "text/javascript"),
    "panels.js": ("panels.js", "text/javascript"),
    "shapes.js": ("shapes.js", "text/javascript"),
    "server.js": ("server.js", "text/javascript"),
}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",  # the address holds the secret
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
SMALL = 64 * 1024  # bytes of a request, besides pixels
JSON, PNG, OCTETS = "application/json", "image/png", "application/octet-stream"


class Guard:
    """Lets through what the page itself asks for, and nothing that another site could send.

    A page of another site cannot know the token, and its requests carry its own name: in Host, if
    it had its name resolved to 127.0.0.1 (DNS rebinding), else in Origin.
    """

    def __init__(self, app: ASGIApp, token: str, port: int) -> None:
        self.app, self.prefix = app, f"/{token}"
        self.hosts = (f"{ADDRESS}:{port}", f"localhost:{port}")
        self.origins = tuple(f"http://{host}" for host in self.hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers 403 or 404 itself, or hands the request on without the token."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        status = self._refusal(scope)
        if status:
            await Response(status_code=status, headers=HEADERS)(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                extra = [(k.lower().encode(), v.encode()) for k, v in HEADERS.items()]
                message = {**message, "headers": [*message.get("headers", ()), *extra]}
            await send(message)

        path = scope["path"][len(self.prefix) :]
        inner = {**scope, "path": path, "raw_path": path.encode()}
        await self.app(inner, receive, send_with_headers)

    def _refusal(self, scope: Scope) -> int:
        headers: dict[bytes, list[bytes]] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name.lower(), []).append(value)
        hosts = [host.decode("latin-1") for host in headers.get(b"host", ())]
        origins = [origin.decode("latin-1") for origin in headers.get(b"origin", ())]
        sites = headers.get(b"sec-fetch-site", ())
        if len(hosts) != 1 or hosts[0] not in self.hosts:
            return 403
        if any(origin not in self.origins for origin in origins):
            return 403
        # "none" is an address that the person typed or clicked in a terminal.
        if any(site not in (b"same-origin", b"none") for site in sites):
            return 403
        raw = scope.get("raw_path") or scope["path"].encode()
        # No name of ours holds anything else; so nothing that is encoded gets any further.
        if not re.fullmatch(rb"[A-Za-z0-9/_.-]*", raw) or b".." in raw:
            return 404
        given, slash, _ = scope["path"][1:].partition("/")
        return 0 if slash and hmac.compare_digest(given, self.prefix[1:]) else 404


def build_app(painter: Painter, *, token: str, port: int) -> ASGIApp:
    """The application: the page and what it asks for, behind the guard."""
    height, width = painter.painting.size
    pixels = SMALL + 8 * height * width  # bytes of the longest list of runs that a picture has
    image = "/api/images/{name}"
    routes = [
        *(_page_file(path, name, kind) for path, (name, kind) in FILES.items()),
        _get("/api/project", painter.project),
        _post("/api/classes", painter.change_classes),
        _post("/api/gallery", painter.change_gallery),
        _get("/api/gallery/{seed:int}", painter.drawing, PNG),
        _post("/api/gallery/{seed:int}/choose", painter.choose),
        _get("/api/previews", painter.preview_status),
        _post("/api/previews", painter.learn),
        _get("/api/previews/{seed:int}", painter.preview, OCTETS),
        _get(image, painter.image_file, PNG),
        _get(f"{image}/mask", painter.mask_file, OCTETS),
        _get(f"{image}/mask.png", painter.mask_png, PNG),
        _post(f"{image}/mask.png", painter.paint_png, limit=pixels, accepts=PNG),
        _post(f"{image}/strokes", painter.stroke, limit=pixels),
        _post(f"{image}/undo", painter.undo),
        _post(f"{image}/redo", painter.redo),
        _post(f"{image}/start", painter.start_from_preview),
        _post(f"{image}/done", painter.mark),
        _post(f"{image}/remove", painter.remove),
    ]
    return Guard(Starlette(routes=routes), token, port)


def _page_file(path: str, name: str, media_type: str) -> Route:
    return _get(f"/{path}", lambda: (PAGE / name).read_bytes(), media_type)


def _get(path: str, work: Callable[..., Any], media_type: str | None = None) -> Route:
    """A route that answers with what `work` gives for the values in its path."""

    async def endpoint(request: Request) -> Response:
        return await _answer(work, request.path_params.values(), media_type)

    return Route(path, endpoint)


def _post(path: str, work: Callable[..., Any], *, limit: int = SMALL, accepts: str = JSON) -> Route:
    """A route that gives `work` the values in its path and the body, of at most `limit` bytes."""

    async def endpoint(request: Request) -> Response:
        try:
            body = await _body(request, limit, accepts)
        except Refused as refused:
            return JSONResponse({"error": str(refused)}, refused.status)
        except ClientDisconnect:
            return Response(status_code=400)
        return await _answer(work, [*request.path_params.values(), body], None)

    return Route(path, endpoint, methods=["POST"])


async def _answer(
    work: Callable[..., Any], values: Iterable[Any], media_type: str | None
) -> Response:
    try:
        result = await run_in_threadpool(work, *values)
    except Refused as refused:
        return JSONResponse({"error": str(refused), **refused.more}, refused.status)
    except LatentsegError as error:
        is_disk = isinstance(error, InputError) and isinstance(error.__cause__, OSError)
        return JSONResponse({"error": str(error)}, 507 if is_disk else 400)
    return Response(result, media_type=media_type) if media_type else JSONResponse(result)


async def _body(request: Request, limit: int, accepts: str) -> Any:
    # What a form of another site can send without being asked first has other types than these.
    if request.headers.get("content-type", "").split(";")[0].strip() != accepts:
        raise Refused(415, f"expected {accepts}.")
    content = bytearray()
    async for chunk in request.stream():
        content += chunk
        if len(content) > limit:
            raise Refused(413, f"more than {limit} bytes.")
    if accepts != JSON:
        return bytes(content)
    try:
        return parse_json(bytes(content))
    except ValueError as error:
        raise Refused(400, f"not JSON ({error}).") from error


def paint(
    generator: Generator,
    out: Path | str,
    *,
    seed: int = 0,
    parts: Sequence[str] = (),
    previewer: Previewer | None = None,
    port: int | None = None,
    open_browser: bool = True,
    quiet: bool = False,
) -> Painting:
    """Serves the painter until Ctrl-C; every stroke is on disk, so that ends it at any time.

    Args:
        generator: Draws the images.
        out: Folder of the painting; one that is there is gone on with.
        seed: Of the images to choose from.
        parts: Names of the classes of a new painting.
        previewer: What learns from the painted images; None: no previews.
        port: On 127.0.0.1; by default any free one.
        open_browser: Open the page in the browser.
        quiet: Print the address alone.

    Returns:
        The painting as it was left.

    Raises:
        InputError: the folder is in use or holds something else, the generator draws other
            images than those that were chosen, or the port is taken.
        CorruptFileError: the painting is damaged.
    """
    with _listening(port) as listener, locked(out):
        painting = start_painting(out, generator.info.to_json(), seed=seed, parts=parts)
        drawings = Drawings(generator)
        check_draws(painting, drawings)
        number, token = listener.getsockname()[1], secrets.token_urlsafe(24)
        painter = Painter(painting, drawings, Previews(previewer, painting.size))
        config = uvicorn.Config(
            build_app(painter, token=token, port=number),
            log_level="warning",
            access_log=False,
            server_header=False,
            lifespan="off",
            ws="none",
            http="h11",
            timeout_graceful_shutdown=2,
            h11_max_incomplete_event_size=SMALL,
        )
        address = f"http://{ADDRESS}:{number}/{token}/"
        print(f"painter: {address}", flush=True)
        say("Every stroke is saved as it is painted. Ctrl-C ends the painter.", quiet=quiet)
        if open_browser:
            threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()
        try:
            uvicorn.Server(config).run(sockets=[listener])
        except KeyboardInterrupt as interrupt:
            if isinstance(interrupt, Terminated):
                raise
        with painter.lock:  # a stroke that is being written is finished
            return painting


def _listening(port: int | None) -> socket.socket:
    if port is not None and not 1 <= port <= 65535:
        raise InputError(f"`port`: expected 1 to 65535, found {port}.")
    try:
        return socket.create_server((ADDRESS, port or 0))
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            reason = "is taken: choose another, or leave `port` out for any free one"
        else:
            reason = f"cannot be used ({error.strerror})"
        raise InputError(f"`port`: {port} {reason}.") from error
