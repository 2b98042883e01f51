"""A screen in the browser: pictures as a stream that any <img> plays (MJPEG), from a server on this machine alone."""

import html
import io
import queue
import secrets
import threading
from collections.abc import Callable, Sequence
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from PIL import Image

from rl_lab.core.errors import UserError
from rl_lab.looking.panels import side_by_side

HOST = "127.0.0.1"
LOOPBACK = {"127.0.0.1", "localhost", "[::1]"}  # names that no page of another machine has
LONGEST_KEY, PATIENCE, VIEWERS = 32, 10.0, 32  # bytes, seconds of a silent viewer, requests at once
PAGE = """<!doctype html>
<meta charset="utf-8">
<title>{title}</title>
<style>
  body {{ margin: 0; min-height: 100vh; display: grid; place-content: center; justify-items: center;
          background: #e9ebef; color: #6e7781; font: 14px system-ui, sans-serif }}
  img {{ max-width: 98vw; max-height: 90vh; border-radius: 6px; box-shadow: 0 2px 12px #0003 }}
</style>
<img id="picture" src="frames" alt="{title}">
<p>{foot}</p>
<script>
  const picture = document.getElementById("picture")
  picture.onerror = () => setTimeout(() => picture.src = "frames?" + Date.now(), 1000)
  addEventListener("keydown", event => {{
    if ({listens} && !event.ctrlKey && !event.metaKey && !event.altKey) {{
      event.preventDefault()
      fetch("key", {{ method: "POST", body: event.key }})
    }}
  }})
</script>
"""
KEYS = {" ": "space", "ArrowUp": "up", "ArrowDown": "down", "ArrowLeft": "left", "ArrowRight": "right"}


class Browser:
    """Shows the newest picture to every viewer; one that is slow, or gone, holds up nobody.

    Only those who know the page's address can see it or press keys: it contains a token, which other pages and other
    users of this machine cannot know.
    """

    fps = float("inf")

    def __init__(self, title: str, draw: Callable, *, port: int = 0, foot: str = "", listens: bool = False):
        """`draw(player)` makes what draws the moments of a player; `foot` stands below the pictures."""
        self.draw, self.wanted, self.token = draw, port, secrets.token_urlsafe(16)
        words = dict(title=html.escape(title), foot=html.escape(foot), listens=str(listens).lower())
        self.page = PAGE.format(**words).encode()
        self._keys: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._turn, self._picture = threading.Condition(), Image.new("RGB", (2, 2))
        self._number, self._jpeg, self._closed = 0, (0, b""), False

    def __enter__(self) -> "Browser":
        try:
            self._server = Server((HOST, self.wanted), partial(Viewer, self))
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"port={self.wanted} is not available ({reason}); port=0 picks a free one") from error
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.1,), daemon=True).start()
        print(f"http://{HOST}:{self.port}/{self.token}/", flush=True)
        return self

    def __exit__(self, *error) -> None:
        with self._turn:
            self._closed = True
            self._turn.notify_all()
        self._server.shutdown()
        self._server.server_close()

    def show(self, pictures: Sequence[Image.Image]) -> None:
        """Side by side; returns at once."""
        with self._turn:
            self._picture, self._number = side_by_side(pictures), self._number + 1
            self._turn.notify_all()

    def key(self, seconds: float | None) -> str | None:
        """The next key pressed within the timeout; None: no timeout."""
        try:
            return self._keys.get(timeout=seconds)
        except queue.Empty:
            return None

    def press(self, name: str) -> None:
        self._keys.put(KEYS.get(name, name if len(name) == 1 else name.lower()))

    def newer(self, seen: int) -> tuple[int, bytes] | None:
        """The number and the JPEG of the newest picture after number `seen`, once there is one; None at the end."""
        with self._turn:
            self._turn.wait_for(lambda: self._closed or self._number > seen)
            if self._closed:
                return None
            if self._jpeg[0] < self._number:
                file = io.BytesIO()
                self._picture.save(file, "jpeg", quality=90, subsampling=0)
                self._jpeg = self._number, file.getvalue()
            return self._jpeg


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, *address_and_handler):
        super().__init__(*address_and_handler)
        self._places = threading.BoundedSemaphore(VIEWERS)

    def process_request(self, request, client_address) -> None:
        """Beyond this many at once, a viewer is turned away."""
        if self._places.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request, client_address) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request, client_address) -> None:
        """A viewer that left in the middle of a picture is no fault."""


class Viewer(BaseHTTPRequestHandler):
    """One request of one viewer."""

    timeout = PATIENCE

    def __init__(self, screen: Browser, *request):
        self.screen = screen
        super().__init__(*request)

    def do_GET(self) -> None:
        match self._asked():
            case "":
                self._answer(200, "text/html; charset=utf-8", self.screen.page)
            case "frames":
                self._stream()
            case None:
                self._answer(403, "text/plain", b"open the address that was printed, with its token\n")
            case _:
                self._answer(404, "text/plain", b"")

    def do_POST(self) -> None:
        """A key that the page sends; of another page's request nothing is read."""
        asked, length = self._asked(), self.headers.get("Content-Length", "")
        if asked is None or self.headers.get("Origin", self._own_origin) != self._own_origin:
            return self._answer(403, "text/plain", b"")
        if asked != "key":
            return self._answer(404, "text/plain", b"")
        if not (length.isascii() and length.isdigit() and int(length[:6]) <= LONGEST_KEY):
            return self._answer(400, "text/plain", b"")
        if key := self.rfile.read(int(length)).decode(errors="replace"):
            self.screen.press(key)
        self._answer(204, "text/plain", b"")

    def _asked(self) -> str | None:
        """What of the page is asked for; None where the token is missing, or the name is none of this machine's own."""
        _, token, *rest = [*self.path.partition("?")[0].split("/", 2), ""]
        name, _, port = self.headers.get("Host", "").rpartition(":")
        is_ours = secrets.compare_digest(token.encode(), self.screen.token.encode())
        return "/".join(rest[:-1]) if is_ours and name in LOOPBACK and port.isdigit() else None

    @property
    def _own_origin(self) -> str:
        return f"http://{self.headers.get('Host', '')}"

    def _stream(self) -> None:
        """A browser draws a part when the boundary after it arrives, so that it is sent at once."""
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(b"--frame\r\n")
        seen = 0
        while newest := self.screen.newer(seen):
            seen, jpeg = newest
            head = f"Content-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
            self.wfile.write(head.encode() + jpeg + b"\r\n--frame\r\n")

    def _answer(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Frame-Options", "DENY")
        self.send_header("Referrer-Policy", "no-referrer")
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = True

    def log_message(self, *words) -> None: ...
