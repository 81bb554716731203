"""A server's scores: the page's server, and servers that fail."""

from __future__ import annotations

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from conftest import TINY

from sdpo_bench.config import RunConfig
from sdpo_bench.errors import UserError
from sdpo_bench.records.identity import run_id
from sdpo_bench.records.reader import load_run
from sdpo_bench.rewards import canonical, find_weights, http, load_reward, load_rewards, not_differentiable
from sdpo_bench.training.loop import train

PAGE = (Path(__file__).parents[2] / "docs" / "rewards.md").read_text()
SERVER = re.search(r"^A complete server.*?```python\n(.*?)^```", PAGE, re.M | re.S)[1]
ABOUT = {"revision": "7", "scale": "0..1"}
CLOSE = object()  # instead of an answer


@pytest.fixture
def serve(monkeypatch):
    """Starts a server of a handler's class, whose address `http@mine` has; waits are short."""
    started = []

    def start(handler: type) -> str:
        handler.log_message = lambda *_: None
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        started.append(server)
        url = f"http://127.0.0.1:{server.server_port}/score"
        monkeypatch.setenv(http.ADDRESSES, f"other=http://localhost:1 mine={url}")
        return url

    monkeypatch.setattr(http, "FIRST_WAIT", 0.001)
    monkeypatch.setenv("no_proxy", "*")
    yield start
    for server in started:
        server.shutdown()
        server.server_close()


def answering(*answers) -> type:
    """A handler that gives these answers to POST, one after the other, the last one again and again: a status and
    bytes, an object, or CLOSE. `asked` are the requests."""

    class Handler(BaseHTTPRequestHandler):
        asked: list[dict] = []  # noqa: RUF012
        left = [*answers]  # noqa: RUF012

        def do_GET(self):
            self.send(200, json.dumps(ABOUT).encode())

        def do_POST(self):
            self.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            answer = self.left.pop(0) if len(self.left) > 1 else self.left[0]
            if answer is not CLOSE:
                self.send(*answer if isinstance(answer, tuple) else (200, json.dumps(answer).encode()))

        def send(self, status, body):
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    return Handler


@pytest.fixture
def pages_handler():
    names: dict = {"__name__": "server"}
    exec(SERVER, names)
    return names["Handler"]


def test_the_pages_server_scores(serve, pages_handler):
    """Pictures arrive as they are, in batches, in their order."""
    serve(pages_handler)
    reward = load_reward("http@mine", batch_size=2)
    assert (reward.name, reward.revision, reward.scale) == ("http@mine", "brightness 1", "0..1")
    images = torch.rand(5, 3, 8, 12, generator=torch.Generator().manual_seed(0))
    scores = reward(images, list("abcde"))
    assert torch.allclose(scores, ((images * 255).round() / 255).mean((1, 2, 3)), atol=1e-6)
    assert scores.dtype == torch.float32


def test_a_run_learns_from_it(serve, pages_handler, tiny_model, tmp_path):
    url = serve(pages_handler)
    settings = TINY | {"epochs": 1, "reward": "http@mine+jpeg_compressibility", "eval_rewards": ("http@mine",)}
    config = RunConfig(model=str(tiny_model), eval_start=False, **settings)
    folder = tmp_path / run_id(config.to_json())
    train(config, folder)
    record = load_run(folder)
    assert record.provenance["rewards"]["http@mine"] == {
        "revision": "brightness 1",
        "scale": "0..1",
        "weights_sha256": {},
    }
    assert {row["reward"] for row in record.eval} == {"http@mine", "http@mine+jpeg_compressibility"}
    assert url not in (folder / "provenance.json").read_text() + (folder / "config.json").read_text()


def test_requests(serve):
    handler = answering({"scores": [1, -2.5]}, {"scores": [3]})
    serve(handler)
    reward = load_rewards(["2*http@mine"], batch_size=2)["2*http@mine"]
    assert reward(torch.zeros(3, 3, 8, 8), ["a", "b", "c"]).tolist() == [2, -5, 6]
    assert [request["prompts"] for request in handler.asked] == [["a", "b"], ["c"]]
    assert all(text.startswith("iVBORw0KGgo") for request in handler.asked for text in request["images"])


@pytest.mark.parametrize("failure", [(503, b"loading"), (429, b""), CLOSE])
def test_it_is_asked_again(serve, failure):
    handler = answering(failure, failure, {"scores": [4]})
    serve(handler)
    assert load_reward("http@mine")(torch.zeros(1, 3, 8, 8), ["a"]).tolist() == [4]
    assert len(handler.asked) == 3


@pytest.mark.parametrize(
    ("answer", "words", "asked"),
    [
        ((500, b"out of\nmemory"), "answered 500 (out of memory), 5 times; start it again", 5),
        (CLOSE, "can't be reached (Remote end closed connection without response), 5 times", 5),
        ((422, b"no prompts"), "answered 422 (no prompts)", 1),
        ((200, b"<html>"), "answered <html>; expected JSON", 1),
        ([1.0, 2.0], "answered [1.0, 2.0] for 2 pictures; expected an object whose scores are a list of 2 numbers", 1),
        ({"scores": [1.0]}, "answered {'scores': [1.0]} for 2 pictures", 1),
        ({"scores": [1.0, float("nan")]}, "gave the score nan; expected a finite number", 1),
        ({"scores": [1.0, "high"]}, "gave the score high; expected a finite number", 1),
        ({"scores": [1.0, True]}, "gave the score True; expected a finite number", 1),
    ],
)
def test_other_answers_are_errors(serve, answer, words, asked):
    handler = answering(answer)
    url = serve(handler)
    with pytest.raises(UserError, match=re.escape(f"reward http@mine: {url} {words}")):
        load_reward("http@mine")(torch.zeros(2, 3, 8, 8), ["a", "b"])
    assert len(handler.asked) == asked


def test_a_server_that_hangs(serve, monkeypatch):
    monkeypatch.setattr(http, "TIMEOUT", 0.05)
    monkeypatch.setattr(http, "ATTEMPTS", 2)
    hold = threading.Event()
    handler = answering({"scores": [1]})
    handler.do_POST = lambda self: hold.wait(5)
    serve(handler)
    reward = load_reward("http@mine")
    with pytest.raises(UserError, match=r"can't be reached \(timed out\), 2 times"):
        reward(torch.zeros(1, 3, 8, 8), ["a"])
    hold.set()


def test_what_is_said_before_a_run(serve, monkeypatch):
    handler = answering({"scores": [1]})
    handler.do_GET = lambda self: self.send(200, b'{"revision": "1"}')
    serve(handler)
    with pytest.raises(UserError, match=r"answered GET with \{'revision': '1'\}; expected an object with revision"):
        find_weights(["http@mine"])
    with pytest.raises(UserError, match=r"http@none: its address is not among other, mine in SDPO_BENCH_HTTP_REWARDS"):
        load_reward("http@none")
    with pytest.raises(UserError, match=r"http@other: \S+ can't be reached \(.*[Rr]efused.*\), 5 times"):
        load_reward("http@other")
    monkeypatch.setenv(http.ADDRESSES, "mine=file:///etc/passwd")
    with pytest.raises(UserError, match=r"its address is 'file:///etc/passwd' in .*; expected mine=http://HOST:PORT"):
        load_reward("http@mine")


def test_names():
    assert canonical(" 0.5 * http@mine") == "0.5*http@mine"
    assert not_differentiable("http@mine") == ["http"]
    for spec in ("http", "http@mine:published"):
        with pytest.raises(UserError, match="expected http@NAME"):
            canonical(spec)
