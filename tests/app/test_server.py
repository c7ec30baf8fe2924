import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
from torch import Tensor

from latentseg.app.actions import Drawings, Painter
from latentseg.app.painting import Painting, gallery_seed
from latentseg.app.previews import Previews
from latentseg.app.server import ADDRESS, SMALL, build_app, paint
from latentseg.errors import InputError
from latentseg.files import locked
from latentseg.generators.protocols import Latents
from latentseg.images import encode, read_image, read_mask
from tests.app.painted import SIZE, Threshold, begin, noise
from tests.world import World

ROOT = Path(__file__).parents[2]
TOKEN = "secret-token"


class Client:
    """Requests to a painter that runs in this process; paths go out as they are."""

    def __init__(self, painter: Painter, port: int) -> None:
        self.painter, self.port = painter, port
        self.names = list(painter.painting.images)

    def ask(
        self,
        path: str,
        body: Any = None,
        *,
        method: str | None = None,
        prefix: str = f"/{TOKEN}",
        headers: dict[str, str] | None = None,
    ) -> tuple[int, bytes]:
        is_json = not isinstance(body, bytes)
        content = json.dumps(body).encode() if is_json and body is not None else body
        kind = {"Content-Type": "application/json" if is_json else "image/png"}
        connection = http.client.HTTPConnection(ADDRESS, self.port, timeout=10)
        with contextlib.closing(connection):
            method = method or ("GET" if body is None else "POST")
            connection.request(method, prefix + path, content, {**kind, **(headers or {})})
            answer = connection.getresponse()
            self.headers = answer.headers
            return answer.status, answer.read()

    def json(self, path: str, body: Any = None) -> dict[str, Any]:
        status, content = self.ask(path, body)
        assert status == 200, content
        return json.loads(content)

    def refused(self, path: str, body: Any, status: int, message: str) -> None:
        got, content = self.ask(path, body)
        assert (got, bool(re.search(message, content.decode()))) == (status, True), content

    def stroke(self, runs: list[list[int]], revision: int, **more: Any) -> dict[str, Any]:
        wish = {"revision": revision, "tool": "brush", "joins": False, "runs": runs, **more}
        return self.json(f"/api/images/{self.names[0]}/strokes", wish)


@contextlib.contextmanager
def serving(painting: Painting, previewer: Threshold | None) -> Iterator[Client]:
    with socket.create_server((ADDRESS, 0)) as listener:
        port = listener.getsockname()[1]
        painter = Painter(painting, Drawings(World(SIZE)), Previews(previewer, SIZE))
        app = build_app(painter, token=TOKEN, port=port)
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off", ws="none"))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            yield Client(painter, port)
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture
def head() -> Threshold:
    return Threshold()


@pytest.fixture
def client(tmp_path: Path, head: Threshold) -> Iterator[Client]:
    with serving(begin(tmp_path / "p"), head) as client:
        yield client


def until(claim: Callable[[], Any]) -> None:
    end = time.monotonic() + 5
    while not claim():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_page_when_opened_then_every_file_of_it_is_served_and_names_no_other_place(
    client: Client,
) -> None:
    status, page = client.ask("/")
    assert status == 200
    assert client.headers["Content-Security-Policy"].startswith("default-src 'none'")
    assert client.headers["Cache-Control"] == "no-store"
    wanted = re.findall(rb'(?:src|href)="([a-z.]+)"', page)
    assert wanted
    while wanted:
        status, content = client.ask(f"/{wanted.pop().decode()}")
        assert status == 200
        assert not re.search(rb"https?://(?!www\.w3\.org/2000/svg)", content)
        wanted += re.findall(rb'from "\./([a-z.]+)"', content)
    assert client.ask("", prefix=f"/{TOKEN}")[0] == 404


def test_stroke_when_sent_then_it_is_on_disk_before_the_answer(client: Client) -> None:
    answer = client.stroke([[5, 3, 1], [40, 2, 255], [50, 1, 0]], 0)
    mask = read_mask(client.painter.painting.masks[client.names[0]].mask_path).reshape(-1)
    assert mask[5:8].tolist() == [1, 1, 1]
    assert mask[50] == 0
    assert (mask != 255).sum() == 4
    assert (answer["undo"], answer["redo"], answer["revision"]) == (1, 0, 1)
    assert answer["painted"] == pytest.approx(4 / mask.size)
    assert answer["counts"] == [1, 3, 0, 0]


def test_undo_when_asked_then_the_answer_holds_what_to_draw(client: Client) -> None:
    image = f"/api/images/{client.names[0]}"
    client.stroke([[5, 3, 1]], 0)
    client.stroke([[6, 3, 2]], 1)
    assert client.json(f"{image}/undo", {"revision": 2})["runs"] == [[6, 2, 1], [8, 1, 255]]
    assert client.json(f"{image}/redo", {"revision": 3})["runs"] == [[6, 2, 2], [8, 1, 2]]
    assert client.json(f"{image}/redo", {"revision": 4})["runs"] == []
    _, content = client.ask(f"{image}/mask")
    assert int.from_bytes(content[:8], "little") == 4
    mask = client.painter.painting.masks[client.names[0]]
    assert content[8:] == mask.pixels.tobytes()


def test_stroke_when_another_page_painted_meanwhile_then_refused_as_stale(client: Client) -> None:
    client.stroke([[5, 3, 1]], 0)
    path = f"/api/images/{client.names[0]}"
    wish = {"revision": 0, "tool": "brush", "joins": False, "runs": [[0, 1, 1]]}
    client.refused(f"{path}/strokes", wish, 409, "changed elsewhere")
    client.refused(f"{path}/undo", {"revision": 7}, 409, "changed elsewhere")


NO_STROKES = [
    ({"runs": [[0, 1, 4]]}, "expected 0-3 or 255"),
    ({"runs": [[0, 1, 254]]}, "expected 0-3 or 255"),
    ({"runs": [[0, 1, -1]]}, "expected 0-3 or 255"),
    ({"runs": [[767, 2, 1]]}, "leaves the picture of 768 pixels"),
    ({"runs": [[-1, 1, 1]]}, "leaves the picture"),
    ({"runs": [[0, 0, 1]]}, "leaves the picture"),
    ({"runs": [[0, 10**18, 1]]}, "leaves the picture"),
    ({"runs": [[0, 10**30, 1]]}, "not JSON .*too large"),
    ({"runs": [[0, 1.5, 1]]}, "all integers"),
    ({"runs": [[0, True, 1]]}, "all integers"),
    ({"runs": [[0, 1]]}, "all integers"),
    ({"runs": [7]}, "all integers"),
    ({"runs": {}}, "wrong type"),
    ({"revision": True}, "wrong type"),
    ({"tool": "hammer"}, "expected one of"),
    ({"more": 1}, "with the fields"),
]


def test_stroke_when_not_one_then_refused_and_nothing_changes(client: Client) -> None:
    right = {"revision": 0, "tool": "brush", "joins": False, "runs": [[0, 1, 1]]}
    for change, message in NO_STROKES:
        wish = {**right, **change}
        client.refused(f"/api/images/{client.names[0]}/strokes", wish, 400, message)
    assert client.painter.painting.masks[client.names[0]].revision == 0


def test_mask_png_when_posted_then_it_must_fit(client: Client, tmp_path: Path) -> None:
    path = f"/api/images/{client.names[0]}/mask.png"
    height, width = SIZE
    client.refused(path, encode(np.zeros((width, height), np.uint8)), 400, "expected")
    client.refused(path, encode(np.full(SIZE, 4, np.uint8)), 400, "ids 0-3")
    client.refused(path, encode(noise(1))[:60], 400, "not a readable image")
    client.refused(path, b"<svg onload=alert(1)>", 400, "not a readable image")
    assert client.painter.painting.masks[client.names[0]].revision == 0
    assert client.json(path, encode(noise(1)))["undo"] == 1
    mask = client.painter.painting.masks[client.names[0]]
    np.testing.assert_array_equal(mask.pixels, noise(1))
    (tmp_path / "m.png").write_bytes(client.ask(path)[1])
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png"), noise(1))


def test_request_when_too_long_or_not_json_then_refused(client: Client) -> None:
    path = f"/api/images/{client.names[0]}/strokes"
    limit = SMALL + 8 * SIZE[0] * SIZE[1]
    json_type = {"Content-Type": "application/json"}
    assert client.ask(path, b"x" * (limit + 1), headers=json_type)[0] == 413
    assert client.ask("/api/previews", b"x" * (SMALL + 1), headers=json_type)[0] == 413
    for junk in (b"{", b"\xff", b"[" * 5000, b"", b"NaN", b"null", b"7", b'"x"'):
        assert client.ask(path, junk, headers=json_type)[0] == 400
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        assert client.ask(path, b"{}", headers={"Content-Type": kind})[0] == 415
    assert client.ask(path, method="DELETE")[0] == 405


TRAVERSALS = [
    "/../painting.json",
    "/../../../../../../etc/passwd",
    "/images/../painting.json",
    "/api/images/../painting.json",
    "/api/images/../../etc/passwd",
    "/api/images/..%2f..%2fpainting.json",
    "/api/images/..%2Fpainting",
    "/api/images/%2e%2e/painting.json",
    "/api/images/%2e%2e%2f%2e%2e%2fetc%2fpasswd",
    "/api/images/..%5c..%5cpainting.json",
    "/api/images/....//....//etc/passwd",
    "/api/images/%252e%252e%252fpainting.json",
    "/api/images/..%c0%af..%c0%afetc/passwd",
    "/api/images/..;/painting.json",
    "/api/images/%00",
    "/api/images/{name}%00.png",
    "/api/images/{name}/../../painting.json",
    "/api/images//etc/passwd",
    "/api/images/{folder}/painting.json",
    "/api/images/file:%2f%2f{folder}/painting.json",
    "//etc/passwd",
    "/painting.json",
    "/dataset.json",
    "/.lock",
    "/images/{name}.png",
    "/masks/{name}.png",
    "/page/painter.html",
    "/painter.html",
    "/server.py",
    "/..%00/painting.json",
    "/api/images/painting.json/mask.png",
    "/api/gallery/../images",
    "/api/gallery/-1",
    "/api/gallery/99999999999999999999",
    "/api/previews/0",
]


def test_paths_when_they_leave_what_is_known_then_403_or_404(client: Client) -> None:
    folder = client.painter.painting.folder
    for path in TRAVERSALS:
        path = path.format(name=client.names[0], folder=folder)
        for prefix in (f"/{TOKEN}", ""):
            status, content = client.ask(path, prefix=prefix)
            assert status in (403, 404), path
            assert b"root:" not in content
            assert b"generator" not in content


def test_address_when_not_known_or_from_another_site_then_refused(client: Client) -> None:
    own = f"{ADDRESS}:{client.port}"
    path = f"/api/images/{client.names[0]}/strokes"
    wish = {"revision": 0, "tool": "brush", "joins": False, "runs": [[0, 1, 1]]}
    for prefix in ("", "/", "/secret-tokem", "/secret", "/secret-token2", "/SECRET-TOKEN"):
        assert client.ask("/api/project", prefix=prefix)[0] == 404
    for host in ("evil.example", f"evil.example:{client.port}", ADDRESS, "", f"{own}.evil.example"):
        assert client.ask("/api/project", headers={"Host": host})[0] == 403
    for origin in ("https://evil.example", "null", f"https://{own}", f"http://{ADDRESS}:1"):
        assert client.ask("/api/project", headers={"Origin": origin})[0] == 403
        assert client.ask(path, wish, headers={"Origin": origin})[0] == 403
    for site in ("cross-site", "same-site"):
        assert client.ask(path, wish, headers={"Sec-Fetch-Site": site})[0] == 403
    assert client.painter.painting.masks[client.names[0]].revision == 0
    allowed = {"Origin": f"http://{own}", "Sec-Fetch-Site": "same-origin"}
    assert client.ask(path, wish, headers=allowed)[0] == 200
    assert client.ask("/api/project", headers={"Host": f"localhost:{client.port}"})[0] == 200


def test_gallery_when_images_are_chosen_and_drawn_again_then_only_its_seeds_are_drawn(
    client: Client, tmp_path: Path
) -> None:
    gallery = client.json("/api/project")["gallery"]
    seed = next(seed for seed in gallery if f"{seed:08d}" not in client.names)
    status, content = client.ask(f"/api/gallery/{seed}")
    assert status == 200
    made = client.json(f"/api/gallery/{seed}/choose", {})
    assert client.json(f"/api/gallery/{seed}/choose", {})["name"] == made["name"]
    (tmp_path / "drawn.png").write_bytes(content)
    (tmp_path / "chosen.png").write_bytes(client.ask(f"/api/images/{made['name']}")[1])
    np.testing.assert_array_equal(
        read_image(tmp_path / "drawn.png"), read_image(tmp_path / "chosen.png")
    )
    after = client.json("/api/gallery", {"more": 5, "again": gallery[3:5]})["gallery"]
    assert len(after) == len(gallery) + 5
    assert not set(gallery[3:5]) & set(after)
    client.refused(f"/api/gallery/{gallery[3]}/choose", {}, 404, "not in the gallery")
    client.refused("/api/gallery", {"more": 10**6, "again": []}, 400, "expected 0 to")
    client.json(f"/api/images/{made['name']}/remove", {})
    assert client.ask(f"/api/images/{made['name']}")[0] == 404


def test_class_when_painted_and_removed_then_only_with_a_word(client: Client) -> None:
    client.stroke([[0, 9, 2], [20, 5, 3]], 0)
    project = client.json("/api/project")
    classes = [{**part, "was": i} for i, part in enumerate(project["classes"], start=1)]
    known = ["hair", "skin", "shoes"]
    wish = {"classes": [classes[2], classes[0]], "known": known, "accept_loss": False}
    status, content = client.ask("/api/classes", wish)
    assert status == 409
    assert json.loads(content)["lost"] == [["skin", 9, 1]]
    after = client.json("/api/classes", {**wish, "accept_loss": True})
    assert [part["name"] for part in after["classes"]] == ["shoes", "hair"]
    assert after["images"][0]["counts"] == [0, 5, 0]
    stale = {"revision": 1, "tool": "brush", "joins": False, "runs": [[0, 1, 2]]}
    client.refused(f"/api/images/{client.names[0]}/strokes", stale, 409, "elsewhere")
    client.refused("/api/classes", {**wish, "accept_loss": True}, 409, "elsewhere")
    wish = {"known": ["shoes", "hair"], "accept_loss": True}
    doubled = {**wish, "classes": [classes[0], {**classes[0], "was": None}]}
    client.refused("/api/classes", doubled, 400, "taken by")
    twice = {**wish, "classes": [classes[0], {**classes[1], "was": 1}]}
    client.refused("/api/classes", twice, 400, "expected some of")


def test_previews_when_an_image_is_done_then_a_head_learns_and_its_mask_is_a_start(
    client: Client, head: Threshold
) -> None:
    first, second = client.names
    assert client.json("/api/previews")["state"] == "idle"
    client.refused("/api/previews", {}, 400, "Nothing is painted")
    client.stroke([[0, 700, 1]], 0)
    assert client.json(f"/api/images/{first}/done", {"is_done": True})["is_done"]
    until(lambda: len(client.json("/api/previews")["shown"]) > 5)
    assert head.fits == [([first], ("hair", "skin", "shoes"))]
    seed = client.painter.painting.images[second].seed
    status, content = client.ask(f"/api/previews/{seed}")
    assert status == 200
    start = f"/api/images/{second}"
    other = {"revision": 0, "tool": "brush", "joins": False, "runs": [[0, 4, 3]]}
    client.json(f"{start}/strokes", other)
    answer = client.json(f"{start}/start", {"revision": 1})
    expected = head.predict([seed])[0].reshape(-1)
    assert content == expected.tobytes()
    expected[:4] = 3
    mask = client.painter.painting.masks[second].pixels
    np.testing.assert_array_equal(mask.reshape(-1), expected)
    assert answer["undo"] == 2


def test_previews_when_painting_goes_on_while_a_head_learns_then_the_latest_wins(
    client: Client, head: Threshold
) -> None:
    first, second = client.names
    head.may_learn.clear()
    client.stroke([[0, 700, 1]], 0)
    client.json(f"/api/images/{first}/done", {"is_done": True})
    until(lambda: head.fits)
    other = {"revision": 0, "tool": "brush", "joins": False, "runs": [[0, 9, 2]]}
    client.json(f"/api/images/{second}/strokes", other)
    client.json("/api/previews", {})
    client.json("/api/previews", {})
    status = client.json("/api/previews", {})
    assert status["state"] == "learning"
    assert status["painted"] == [first, second]
    until(lambda: len(head.fits) == 4)
    head.may_learn.set()
    until(lambda: client.json("/api/previews")["state"] == "ready")
    assert [names for names, _ in head.fits] == [[first], *[[first, second]] * 3]
    assert client.json("/api/previews")["version"] == 1


def test_previews_when_the_head_fails_then_it_is_said_and_painting_goes_on(
    client: Client, head: Threshold
) -> None:
    head.error = ValueError("singular matrix")
    client.stroke([[0, 700, 1]], 0)
    client.json("/api/previews", {})
    until(lambda: client.json("/api/previews")["state"] == "failed")
    assert client.json("/api/previews")["error"] == "singular matrix"
    head.error = None
    client.stroke([[0, 5, 2]], 1)
    client.json("/api/previews", {})
    until(lambda: client.json("/api/previews")["state"] == "ready")


def test_previews_when_classes_move_then_what_was_learnt_is_dropped_and_learnt_again(
    client: Client, head: Threshold
) -> None:
    client.stroke([[0, 700, 1]], 0)
    client.json(f"/api/images/{client.names[0]}/done", {"is_done": True})
    until(lambda: client.json("/api/previews")["state"] == "ready")
    head.may_learn.clear()
    classes = client.json("/api/project")["classes"]
    turned = [{**classes[i], "was": i + 1} for i in (2, 1, 0)]
    wish = {"classes": turned, "known": ["hair", "skin", "shoes"], "accept_loss": False}
    after = client.json("/api/classes", wish)
    assert after["previews"]["state"] == "learning"
    assert after["previews"]["shown"] == []
    head.may_learn.set()
    until(lambda: client.json("/api/previews")["state"] == "ready")
    assert head.fits[-1][1] == ("shoes", "skin", "hair")


def test_previews_when_there_is_no_head_then_they_are_off(tmp_path: Path) -> None:
    with serving(begin(tmp_path / "p"), None) as client:
        assert client.json("/api/project")["previews"]["state"] == "off"
        client.stroke([[0, 700, 1]], 0)
        client.json(f"/api/images/{client.names[0]}/done", {"is_done": True})
        client.refused("/api/previews", {}, 400, "Previews are off")


PROGRAM = """
import sys
from latentseg.app.server import paint
from tests.app.painted import PARTS, SIZE
from tests.world import World
paint(World(SIZE), sys.argv[1], parts=PARTS, open_browser=False)
print("ended")
"""


@contextlib.contextmanager
def painter_process(folder: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`paint` in a process of its own, and its address."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("painter: "), process.communicate()
        yield process, line.split()[1]
    finally:
        process.kill()
        process.communicate()


def listening(process: int) -> list[tuple[str, int]]:
    """(address, port) of each socket on which a process listens, by what the kernel says."""
    links = []
    for entry in Path(f"/proc/{process}/fd").iterdir():
        with contextlib.suppress(OSError):
            links.append(os.readlink(entry))
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{process}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in links:
                address, port = fields[1].split(":")
                found.append((address, int(port, 16)))
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's tables are those of Linux")
def test_process_when_it_serves_then_only_on_the_loopback_and_ctrl_c_ends_it(
    tmp_path: Path,
) -> None:
    with painter_process(tmp_path / "p") as (process, address):
        assert listening(process.pid) == [("0100007F", int(address.split("/")[2].split(":")[1]))]
        assert len(address.split("/")[3]) >= 32
        with pytest.raises(InputError, match=f"process {process.pid}"), locked(tmp_path / "p"):
            pass
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=10)
        assert (process.returncode, out) == (0, "ended\n")
        assert "Traceback" not in err
    with locked(tmp_path / "p"):
        assert Painting(tmp_path / "p").gallery[0] == gallery_seed(0, 0)


def test_port_when_taken_or_impossible_then_refused(tmp_path: Path) -> None:
    with socket.create_server((ADDRESS, 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(InputError, match="is taken"):
            paint(World(SIZE), tmp_path / "p", port=port, open_browser=False)
    with pytest.raises(InputError, match="1 to 65535"):
        paint(World(SIZE), tmp_path / "p", port=70000, open_browser=False)
    assert not (tmp_path / "p").exists()


class Shifted(World):
    """The same card, other images: as with another truncation."""

    def sample(self, seeds: Tensor) -> Latents:
        latents = super().sample(seeds)
        return latents.with_values(0.3 * latents.values)


def test_generator_when_it_draws_other_images_then_the_painting_is_not_opened(
    tmp_path: Path,
) -> None:
    begin(tmp_path / "p")
    with pytest.raises(InputError, match="draws another image from seed"):
        paint(Shifted(SIZE), tmp_path / "p", open_browser=False)
