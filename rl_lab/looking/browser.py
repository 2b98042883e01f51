"""A screen in the browser: a page that asks for one picture after another, from a server on this machine alone."""

import html
import io
import queue
import re
import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import MappingProxyType

from PIL import Image

from rl_lab.core.errors import UserError
from rl_lab.looking.panels import side_by_side

HOST = "127.0.0.1"
LOOPBACK = {"127.0.0.1", "localhost", "[::1]"}  # names that no page of another machine has
LONGEST_KEY, PATIENCE, VIEWERS = 32, 10.0, 32  # bytes, seconds of a silent viewer, requests at once
PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<link rel="icon" href="data:,">
<style>
  body {{ margin: 0; min-height: 100vh; display: flex; flex-wrap: wrap; place-content: center; align-items: center;
          gap: 16px 32px; background: #e9ebef; color: #57606a; font: 15px system-ui, sans-serif }}
  canvas {{ max-width: 96vw; max-height: 94vh; border-radius: 6px; box-shadow: 0 2px 12px #0003 }}
  .over canvas {{ opacity: 0.6 }}
  th, td {{ padding: 3px 8px; text-align: left; font-weight: normal }}
  button {{ width: 100%; padding: 4px 12px; border: 1px solid #c4cad1; border-radius: 5px; background: #f6f8fa;
           color: #24292f; font: inherit; text-align: left; cursor: pointer }}
  button:hover {{ background: #fff }}
  kbd {{ padding: 1px 7px; border: 1px solid #c4cad1; border-bottom-width: 2px; border-radius: 5px; background: #fff;
         color: #24292f; font: inherit }}
  .across {{ flex-basis: 100% }}
  .across tbody {{ display: flex; flex-wrap: wrap; justify-content: center; gap: 4px 12px }}
  p {{ flex-basis: 100%; margin: 0; text-align: center; visibility: hidden }}
  .over p {{ visibility: visible }}
</style>
<canvas hidden role="img" aria-label="{title}"></canvas>
{keys}
<p>Over, or out of reach: the terminal says more.</p>
<script>
  const canvas = document.querySelector("canvas")
  let seen = 0, keyed = -1, sent = Promise.resolve()

  // What is asked for is the newest picture after the one that is seen, which a slow viewer is never behind of.
  async function look() {{
    for (;;) try {{
      const answer = await fetch("picture/" + seen)
      if (answer.status == 200) {{
        const picture = await createImageBitmap(await answer.blob())
        Object.assign(canvas, {{ hidden: false, width: picture.width, height: picture.height }})
        canvas.getContext("2d").drawImage(picture, 0, 0)
        seen = Number(answer.headers.get("Number"))
      }}
      document.body.classList.toggle("over", answer.status >= 400)
      if (answer.status >= 400) return
    }} catch {{
      document.body.classList.add("over")
      await new Promise(later => setTimeout(later, 1000))
    }}
  }}
  look()

  function send(key) {{
    sent = sent.then(() => fetch("key", {{ method: "POST", body: key }})).catch(() => {{}})
  }}
  for (const row of document.querySelectorAll("tr"))
    row.querySelector("button").addEventListener("click", () => send(row.querySelector("kbd").innerText))

  // In order; while a key is held down, its next repetition waits until the last one is seen.
  addEventListener("keydown", event => {{
    const named = event.key.length == 1 || /^(Arrow|Enter$|Escape$|Backspace$)/.test(event.key)
    if (!document.querySelector("kbd") || !named || event.ctrlKey || event.metaKey || event.altKey) return
    event.preventDefault()
    if (event.repeat && keyed == seen) return
    keyed = seen
    send(event.key)
  }})
</script>
"""
KEYS = {" ": "space", "ArrowUp": "up", "ArrowDown": "down", "ArrowLeft": "left", "ArrowRight": "right",
        "↑": "up", "↓": "down", "←": "left", "→": "right"}  # as buttons have them  # fmt: skip


class Browser:
    """Shows the newest picture to every viewer; a slow or absent one holds up nobody.

    Only those who know the page's address can see it or press keys: it contains a token, which other pages and other
    users of this machine cannot know.
    """

    fps = float("inf")

    def __init__(self, title: str, draw: Callable, *, port: int = 0, keys: Mapping[str, Sequence[str]] | None = None,
                 across: bool = False):  # fmt: skip
        """`draw(player)` makes what draws the moments of a player; `keys` to press, by what they do, in a column or
        `across`.
        """
        self.draw, self.wanted, self.token = draw, port, secrets.token_urlsafe(16)
        self.page = PAGE.format(title=html.escape(title), keys=table(keys, across) if keys else "").encode()
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
        """The number and the JPEG of the newest picture after number `seen`; no bytes where none comes for a while,
        None at the end.
        """
        with self._turn:
            self._turn.wait_for(lambda: self._closed or self._number > seen, PATIENCE)
            if self._closed:
                return None
            if self._number <= seen:
                return seen, b""
            if self._jpeg[0] < self._number:
                file = io.BytesIO()
                self._picture.save(file, "jpeg", quality=90, subsampling=0)
                self._jpeg = self._number, file.getvalue()
            return self._jpeg


def table(keys: Mapping[str, Sequence[str]], across: bool = False) -> str:
    """A row for each thing to do, and the keys that do it; the rows in one line, `across`, or one below the other."""
    caps = lambda names: " ".join(f"<kbd>{html.escape(name)}</kbd>" for name in names)
    button = lambda what: f'<button tabindex="-1">{html.escape(what)}</button>'  # which keys of the keyboard pass by
    rows = [f"<tr><th>{button(what)}</th><td>{caps(names)}</td></tr>" for what, names in keys.items()]
    return "\n".join(["<table" + " class=across" * across + ">", *rows, "</table>"])


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, *address_and_handler):
        super().__init__(*address_and_handler)
        self._places = threading.BoundedSemaphore(VIEWERS)

    def process_request(self, request, client_address) -> None:
        """Turns a viewer away if there are already this many."""
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
    """The requests of one viewer, one after another."""

    protocol_version, timeout = "HTTP/1.1", PATIENCE
    disable_nagle_algorithm = True  # it would hold back what follows the headers

    def __init__(self, screen: Browser, *request):
        self.screen = screen
        super().__init__(*request)

    def do_GET(self) -> None:
        asked = self._asked()
        what, _, seen = (asked or "").partition("/")
        if asked is None:
            self._answer(403, "text/plain", b"open the address that was printed, with its token\n")
        elif asked == "":
            self._answer(200, "text/html; charset=utf-8", self.screen.page)
        elif what == "picture" and seen.isdecimal():
            self._picture(int(seen[:18]))
        else:
            self._answer(404, "text/plain", b"")

    def do_POST(self) -> None:
        """A key that the page sends; of another page's request nothing is read."""
        asked, lengths = self._asked(), self.headers.get_all("Content-Length", [])
        if asked is None or self.headers.get("Origin", self._own_origin) != self._own_origin:
            return self._answer(403, "text/plain", b"")
        if asked != "key":
            return self._answer(404, "text/plain", b"")
        length = int(lengths[0]) if len(lengths) == 1 and re.fullmatch("[0-9]{1,6}", lengths[0]) else LONGEST_KEY + 1
        if length > LONGEST_KEY or "Transfer-Encoding" in self.headers:
            return self._answer(400, "text/plain", b"")
        if key := self.rfile.read(length).decode(errors="replace"):
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

    def _picture(self, seen: int) -> None:
        newest = self.screen.newer(seen)
        if newest is None:
            return self._answer(410, "text/plain", b"")
        number, jpeg = newest
        self._answer(200 if jpeg else 204, "image/jpeg", jpeg, {"Number": str(number), "Cache-Control": "no-store"})

    def _answer(self, status: int, kind: str, body: bytes, more: Mapping[str, str] = MappingProxyType({})) -> None:
        """After a refusal the connection is closed, as what else was sent is not read."""
        headers = {"Content-Type": kind, "X-Frame-Options": "DENY", "Referrer-Policy": "no-referrer", **more}
        headers |= {"Connection": "close"} if status >= 400 else {}
        headers |= {"Content-Length": str(len(body))} if status != 204 else {}
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words) -> None: ...
