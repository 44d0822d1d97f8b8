"""The page and its JSON, for the browser of one person or of those who have the token.

What a request can do: ask a query, and get a picture, a video or a clip of the index by its number. No request names a
file, and none writes to the index or beside it; clips are made under names that the server gives.
"""

import asyncio
import contextlib
import errno
import functools
import hmac
import ipaddress
import json
import logging
import math
import os
import re
import secrets
import socket
import sqlite3
import stat
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
from starlette.applications import Starlette
from starlette.datastructures import Headers, QueryParams
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from common.errors import UserError
from search.playing import ClipError, Clips
from search.queries import Query, QueryError, Searcher
from search.store import Stamp, Video

logger = logging.getLogger("stop")

PAGE = Path(__file__).with_name("page")
FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
MAX_TEXT = 500  # characters of a query
MAX_URL = 4096  # bytes of a request's path and query
MAX_TOP = 200
WAITING_QUERIES = 32  # that may wait for their turn
CLIPS, WAITING_CLIPS = 2, 16  # that are made at a time, and that may wait for that
STREAMS = 64  # videos and clips that are sent at a time
CHUNK = 2**18  # bytes of a video at a time
STALLED = 60.0  # seconds in which a chunk has to go out; a browser that has paused asks for the rest again
COOKIE = "search_token"
HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([^\s:\[\]/@]+))(?::\d{1,5})?")  # of the header: address or name, port
SECURITY = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "media-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}
# what browsers play of their containers, most of the time; the page takes a clip where one does not
PLAYABLE = {".mp4": "video/mp4", ".m4v": "video/mp4", ".mov": "video/mp4", ".webm": "video/webm"}


class Refused(Exception):
    """A request that is answered with a status and a reason."""

    def __init__(self, status: int, reason: str, headers: Mapping[str, str] | None = None):
        super().__init__(reason)
        self.status, self.reason, self.headers = status, reason, dict(headers or {})


@dataclass(frozen=True)
class Access:
    """Who may ask.

    Attributes:
        hosts: names and addresses by which the server is reached, in lower case.
        any_address: it is also reached by any address in digits, which no page elsewhere can make point here.
        port: that it listens at.
        token: that a request must bring; None where only this machine can ask.
    """

    hosts: frozenset[str]
    any_address: bool
    port: int
    token: str | None

    def knows(self, host: str) -> bool:
        """Whether a Host header names this server, at any port, since ports may be forwarded.

        Another name is that of a page elsewhere that was made to point here.
        """
        parts = HOST.fullmatch(host.lower())
        if parts is None:
            return False
        name = parts[1] or parts[2]
        return name in self.hosts or (self.any_address and _is_address(name))


def access_of(host: str, port: int, name: str | None) -> Access:
    """Who may ask a server at an address; a token is drawn where others than this machine can reach it.

    So it is where a name is given: a proxy that listens elsewhere asks from this machine.

    Raises:
        UserError: if the address is none.
    """
    try:
        address = ipaddress.ip_address(socket.getaddrinfo(host, None)[0][4][0].split("%")[0])
    except (OSError, ValueError) as error:
        raise UserError(f"--host {host} is no address of this machine") from error
    own = {"localhost", "127.0.0.1", "::1"}
    hosts = {host.lower(), str(address)} | ({name.lower()} if name else set())
    if address.is_loopback:
        return Access(frozenset(hosts | own), False, port, secrets.token_urlsafe(24) if name else None)
    hosts |= own | {socket.gethostname().lower()} if address.is_unspecified else set()
    return Access(frozenset(hosts), address.is_unspecified, port, secrets.token_urlsafe(24))


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


class Guard:
    """Stands before every request: method, host, origin, token, length; and gives every answer its headers."""

    def __init__(self, app: ASGIApp, access: Access):
        self.app, self.access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or let it through."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            return  # a websocket, which is closed without an answer

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                names = {name.lower() for name, _ in message["headers"]}
                extra = [(k.encode(), v.encode()) for k, v in SECURITY.items() if k.encode() not in names]
                message = {**message, "headers": [*message["headers"], *extra]}
            await send(message)

        try:
            answer = self._check(scope)
        except Refused as refused:
            answer = refusal(refused)
        await (answer or self.app)(scope, receive, send_guarded)

    def _check(self, scope: Scope) -> Response | None:
        """None for a request that may pass.

        Raises:
            Refused: one that may not.
        """
        headers = Headers(scope=scope)
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not self.access.knows(hosts[0]):
            raise Refused(421, "this server is not known by that name")
        if scope["method"] not in ("GET", "HEAD"):
            raise Refused(405, "only GET and HEAD", {"allow": "GET, HEAD"})
        if len(scope["raw_path"] or b"") + len(scope["query_string"]) > MAX_URL:
            raise Refused(414, f"longer than {MAX_URL} bytes")
        # an address that was typed or sent in a letter may lead to the page, and to nothing behind it
        if headers.get("sec-fetch-site", "none") not in ("same-origin", "none") and scope["path"] != "/":
            raise Refused(403, "asked by a page of another site")
        return None if self.access.token is None else self._check_token(scope, headers)

    def _check_token(self, scope: Scope, headers: Headers) -> Response | None:
        token = self.access.token
        request = Request(scope)
        if given := request.query_params.get("token"):
            if not _equal(given, token):
                raise Refused(401, "wrong token")
            if scope["path"] == "/":  # so that it does not stay in the address
                rest = [(k, v) for k, v in request.query_params.multi_items() if k != "token"]
                answer = RedirectResponse("/" + (f"?{QueryParams(rest)}" if rest else ""), 303)
                answer.set_cookie(COOKIE, token, httponly=True, samesite="strict")
                return answer
            return None
        kind, _, given = headers.get("authorization", "").partition(" ")
        if (kind.lower() == "bearer" and _equal(given, token)) or _equal(request.cookies.get(COOKIE, ""), token):
            return None
        raise Refused(401, "open the address with the token that the server printed", {"www-authenticate": "Bearer"})


def _equal(given: str, token: str) -> bool:
    return hmac.compare_digest(given.encode(), token.encode())


def refusal(refused: Refused) -> Response:
    """The answer to a request that is refused: JSON with a reason."""
    return answer_json({"error": refused.reason}, refused.status, refused.headers)


def answer_json(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """An answer in JSON, which nobody keeps."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False)
    kept = {"cache-control": "no-store", **(headers or {})}
    return Response(text.encode("utf-8", "backslashreplace"), status, kept, "application/json")


class Turns:
    """Lets some do something at a time and some more wait; all others are told to come again."""

    def __init__(self, running: int, waiting: int):
        self._running = asyncio.Semaphore(running)
        self._room = running + waiting

    @asynccontextmanager
    async def take(self) -> AsyncIterator[None]:
        """Wait for one's turn, which lasts as long as the block.

        Raises:
            Refused: if too many wait already.
        """
        if self._room <= 0:
            raise Refused(503, "too many requests at once; try again", {"retry-after": "1"})
        self._room -= 1
        try:
            async with self._running:
                yield
        finally:
            self._room += 1


def parse_query(parameters: QueryParams) -> Query:
    """A query from an address.

    Raises:
        Refused: saying what is wrong with it.
    """
    known = {"q", "not", "like", "folder", "min", "max", "top", "all", "token"}
    if unknown := set(parameters) - known:
        raise Refused(
            400, f"unknown: {', '.join(sorted(unknown))[:100]}; known: {', '.join(sorted(known - {'token'}))}"
        )
    if repeated := [name for name in parameters if len(parameters.getlist(name)) > 1]:
        raise Refused(400, f"given twice: {repeated[0]}")
    texts = {name: parameters.get(name, "").strip() for name in ("q", "not", "folder")}
    for name, text in texts.items():
        if len(text) > MAX_TEXT:
            raise Refused(400, f"{name} has {len(text)} characters, more than {MAX_TEXT}")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise Refused(400, f"{name} is no text") from error
    top = _number(parameters, "top", int, 1, MAX_TOP)
    return Query(
        texts["q"],
        texts["not"],
        _number(parameters, "like", int, 1, 2**62),
        texts["folder"],
        _number(parameters, "min", float, 0, 1e9) or 0.0,
        math.inf if (longest := _number(parameters, "max", float, 0, 1e9)) is None else longest,
        24 if top is None else top,
        parameters.get("all", "") == "1",
    )


def _number(parameters: QueryParams, name: str, kind: type, low: float, high: float) -> Any:
    text = parameters.get(name, "").strip()
    if not text:
        return None
    try:
        if len(text) > 30 or not text.isascii():
            raise ValueError
        value = kind(text)
    except ValueError as error:
        raise Refused(400, f"{name} is no number") from error
    if not low <= value <= high:
        raise Refused(400, f"{name} must be {low:g} to {high:g}")
    return value


class Pages:
    """What the addresses answer."""

    def __init__(self, searcher: Searcher, clips: Clips, max_queries: int):
        self.searcher, self.clips = searcher, clips
        self._queries = Turns(max_queries, WAITING_QUERIES)
        self._looks = Turns(4, 4 * WAITING_QUERIES)
        self._clips = Turns(CLIPS, WAITING_CLIPS)
        self._streams = Turns(STREAMS, STREAMS)
        self._files = {path: ((PAGE / name).read_bytes(), kind) for path, (name, kind) in FILES.items()}

    async def file(self, request: Request) -> Response:
        """One of the page's own files."""
        content, kind = self._files[request.url.path]
        return Response(content, headers={"cache-control": "no-cache"}, media_type=kind)

    async def search(self, request: Request) -> Response:
        """``/api/search``."""
        query = parse_query(request.query_params)
        async with self._queries.take():
            try:
                answer = await anyio.to_thread.run_sync(self.searcher.answer, query)
            except QueryError as error:
                raise Refused(400, str(error)) from error
        for moment in answer["moments"]:
            path = moment.pop("path")
            moment["playable"] = Path(path).suffix.lower() in PLAYABLE
        return answer_json(answer)

    async def info(self, request: Request) -> Response:
        """``/api/info``."""
        async with self._looks.take():
            return answer_json(await anyio.to_thread.run_sync(self._info))

    def _info(self) -> dict[str, Any]:
        loaded = self.searcher.load()
        growing, (done, total) = self.searcher.growth()
        good = [video for video in loaded.videos.values() if video.problem is None]
        return {
            "videos": len(good),
            "bad_videos": len(loaded.videos) - len(good),
            "windows": len(loaded.rows.rows),
            "seconds": round(sum(video.seconds for video in good), 1),
            "growing": growing,
            "done": done,
            "total": total,
            "folders": self.searcher.folders()[:1000],
        }

    async def picture(self, request: Request) -> Response:
        """``/picture/NUMBER``: a window's middle frame."""
        async with self._looks.take():
            try:
                data = await anyio.to_thread.run_sync(self.searcher.picture, _id(request))
            except OSError as error:
                raise Refused(410, "the index has lost its pictures") from error
        if data is None:
            raise Refused(404, "no such window")
        # another index on this port has pictures of the same numbers
        return Response(data, headers={"cache-control": "no-store"}, media_type="image/jpeg")

    async def video(self, request: Request) -> Response:
        """``/video/NUMBER``: the file, or a range of it."""
        video = await anyio.to_thread.run_sync(self.searcher.video, _id(request))
        if video is None or video.problem is not None:
            raise Refused(404, "no such video")
        kind = PLAYABLE.get(Path(video.path).suffix.lower(), "application/octet-stream")
        file = await anyio.to_thread.run_sync(open_video, video)
        return await self._send(request, file, kind, f'"{video.stamp.size}-{video.stamp.mtime_ns}"')

    async def clip(self, request: Request) -> Response:
        """``/clip/NUMBER``: H.264 from the start of a window on."""
        window = await anyio.to_thread.run_sync(self.searcher.window, _id(request))
        video = window and await anyio.to_thread.run_sync(self.searcher.video, window.video)
        if not video:
            raise Refused(404, "no such window")
        os.close(await anyio.to_thread.run_sync(open_video, video))  # refuses what is not what was indexed
        make = functools.partial(
            self.clips.open,
            Path(video.path),
            video.stamp.mtime_ns,
            window.id,
            window.start,
            video.seconds - window.start,
        )
        try:
            async with self._clips.take():
                file = await anyio.to_thread.run_sync(make)
        except (ClipError, OSError) as error:
            reason = getattr(error, "strerror", None) or str(error)  # an OSError names a path
            raise Refused(422, f"no clip can be made of this video: {reason}") from error
        return await self._send(request, file, "video/mp4", f'"{window.id}-{video.stamp.mtime_ns}"')

    async def _send(self, request: Request, file: int, kind: str, tag: str) -> Response:
        """A file or a range of it; closes it."""
        try:
            size = os.fstat(file).st_size
            wanted = parse_range(request.headers.get("range"), size)
            if request.headers.get("if-range", tag) != tag:
                wanted = None
            first, last = (0, size - 1) if wanted is None else wanted
            headers = {"accept-ranges": "bytes", "etag": tag, "cache-control": "private, no-cache"}
            headers["content-length"] = str(last - first + 1)
            if wanted is not None:
                headers["content-range"] = f"bytes {first}-{last}/{size}"
            return FileAnswer(file, first, last, self._streams, 200 if wanted is None else 206, headers, kind)
        except BaseException:
            os.close(file)
            raise


class FileAnswer(StreamingResponse):
    """A part of an open file, a chunk at a time; closes it."""

    def __init__(
        self, file: int, first: int, last: int, turns: Turns, status: int, headers: Mapping[str, str], kind: str
    ):
        """Send the bytes `first` to `last`; `turns`: of sending."""
        super().__init__(self._chunks(file, first, last), status, headers, kind)
        self._file, self._turns = file, turns

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        try:
            if scope["method"] == "HEAD":
                await Response(None, self.status_code, self.headers)(scope, receive, send)
                return

            async def send_in_time(message: Message) -> None:
                with anyio.fail_after(STALLED):
                    await send(message)

            async with self._turns.take():
                with contextlib.suppress(TimeoutError):  # others want their turn
                    await super().__call__(scope, receive, send_in_time)
        finally:
            os.close(self._file)

    async def _chunks(self, file: int, first: int, last: int) -> AsyncIterator[bytes]:
        while first <= last:
            chunk = await anyio.to_thread.run_sync(os.pread, file, min(CHUNK, last - first + 1), first)
            if not chunk:  # it became shorter while it was sent
                return
            first += len(chunk)
            yield chunk


def _id(request: Request) -> int:
    """The number in an address; longer ones than any that is given are refused by the route's pattern."""
    number = request.path_params["number"]
    if number >= 2**62:
        raise Refused(404, "no such number")
    return number


def open_video(video: Video) -> int:
    """A descriptor of a video's file.

    Raises:
        Refused: if it is gone, or is not the file that was indexed.
    """
    try:
        file = os.open(video.path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe that took its place does not hang
    except OSError as error:
        raise Refused(410, f"the video cannot be opened any more: {error.strerror}") from error
    status = os.fstat(file)
    if not stat.S_ISREG(status.st_mode) or Stamp.of(status) != video.stamp:
        os.close(file)
        raise Refused(410, "the video has changed since it was indexed; index again")
    return file


def parse_range(header: str | None, size: int) -> tuple[int, int] | None:
    """First and last byte of a Range header; None for all, also where several ranges are asked for at once.

    Raises:
        Refused: if it lies behind the file's end.
    """
    unit, equals, ranges = (header or "").partition("=")
    first, dash, last = ranges.strip().partition("-")
    numbers = [text for text in (first, last) if text]
    plain = all(text.isascii() and text.isdigit() and len(text) < 20 for text in numbers)
    if unit.strip().lower() != "bytes" or not (equals and dash and numbers and plain):
        return None
    if not first:
        begin, end = max(0, size - int(last)), size - 1
        valid = int(last) > 0 and size > 0
    else:
        begin, end = int(first), min(int(last) if last else size - 1, size - 1)
        if last and int(last) < begin:
            return None
        valid = begin < size
    if not valid:
        raise Refused(416, "no such range", {"content-range": f"bytes */{size}"})
    return begin, end


def make_app(searcher: Searcher, clips: Clips, access: Access, max_queries: int) -> ASGIApp:
    """The server's application.

    Args:
        searcher: what answers. clips: what makes clips.
        access: who may ask.
        max_queries: computed at a time.
    """
    pages = Pages(searcher, clips, max_queries)
    routes = [Route(path, pages.file) for path in FILES]
    routes += [
        Route("/api/search", pages.search),
        Route("/api/info", pages.info),
        Route("/picture/{number:int}", pages.picture),
        Route("/video/{number:int}", pages.video),
        Route("/clip/{number:int}", pages.clip),
    ]

    async def refused(request: Request, error: Refused) -> Response:
        return refusal(error)

    async def other(request: Request, error: Any) -> Response:
        status = getattr(error, "status_code", 500)
        return answer_json({"error": HTTPStatus(status).phrase.lower()}, status)

    async def unread(request: Request, error: Any) -> Response:
        logger.error("the index cannot be read: %s", error)  # with its place, which is nobody's business
        return refusal(Refused(503, "the index cannot be read: whoever runs this server has been told why"))

    handlers: dict[Any, Callable] = {
        Refused: refused,
        sqlite3.Error: unread,
        UserError: unread,
        404: other,
        405: other,
        500: other,
    }
    app = Starlette(routes=routes, exception_handlers=handlers)
    app.router.redirect_slashes = False
    return Guard(app, access)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        UserError: if that is not possible, such as where the port is taken.
    """
    try:
        family = socket.getaddrinfo(host, None)[0][0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(128)
    except OSError as error:
        other = "--host" if error.errno == errno.EADDRNOTAVAIL else "--port"
        raise UserError(f"--host {host} --port {port}: {error.strerror}; give another {other}") from error
    return listener


def address_of(host: str, access: Access) -> str:
    """What to open in a browser."""
    name = f"[{host}]" if ":" in host else host
    if access.any_address:
        name = socket.gethostname()
    return f"http://{name}:{access.port}/" + (f"?token={access.token}" if access.token else "")


class Server:
    """The page at an address, until it is told to stop."""

    def __init__(self, app_of: Callable[[Access], ASGIApp], host: str, port: int, name: str | None = None):
        """Take the address; `app_of` makes the application for who may ask.

        Raises:
            UserError: if the address cannot be had.
        """
        import uvicorn

        self._listener = listen(host, port)
        self.access = access_of(host, self._listener.getsockname()[1], name)
        self.address = address_of(host, self.access)
        settings = uvicorn.Config(
            app_of(self.access),
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=5,
            timeout_graceful_shutdown=2,
            ws="none",
            h11_max_incomplete_event_size=16 * 1024,
        )
        self._server = uvicorn.Server(settings)

    def run(self) -> None:
        """Serve until Ctrl-C."""
        self._server.run(sockets=[self._listener])

    def start(self) -> threading.Thread:
        """Serve from a thread, which ends with `stop`."""
        thread = threading.Thread(target=self.run, daemon=True)
        thread.start()
        return thread

    def stop(self) -> None:
        """End `run`."""
        self._server.should_exit = True
