"""Scores of a server: HPSv3, UnifiedReward, a judge, or whatever else needs an environment or a GPU of its own.

docs/rewards.md has the protocol and a complete server.
"""

from __future__ import annotations

import base64
import io
import json
import math
import os
import time
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import torch
from PIL import Image
from torch import Tensor

from sdpo_bench.errors import UserError
from sdpo_bench.records.schema import is_line
from sdpo_bench.rewards._spec import Term
from sdpo_bench.rewards.base import Reward, to_uint8

ADDRESSES = "SDPO_BENCH_HTTP_REWARDS"
"""Environment variable: NAME=URL of each server, separated by spaces. An address is no part of a run: records have the
name, and the server may move."""
TIMEOUT = 300.0  # seconds for a request's answer: a judge of some billion weights takes seconds a picture
ATTEMPTS = 5
FIRST_WAIT = 1.0  # seconds before the second attempt; each later wait is twice as long
BUSY = 429


class HTTP(Reward):
    """A reward from a server, which also says its revision and scale."""

    name = "http"
    title = "Server"
    licence = "the server's"
    revision = "the server's"
    scale = "the server's"
    needs = "a server"

    def __init__(self, service: str, batch_size: int = 32) -> None:
        """`batch_size`: most pictures in a request. UserError for a name without an address, or a server that does not
        answer as it should."""
        self.name, self.batch_size = Term(self.name, revision=service).label, batch_size
        self.url = address(service)
        about = self._ask(None)
        for key in ("revision", "scale"):
            if not isinstance(about, dict) or not is_line(about.get(key)):
                raise self._wrong(f"answered GET with {shortened(about)}; expected an object with revision and scale")
        self.title, self.revision, self.scale = service, about["revision"], about["scale"]

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        pictures = [encoded(image) for image in to_uint8(images).permute(0, 2, 3, 1).cpu().numpy()]
        scores: list[float] = []
        for i in range(0, len(pictures), self.batch_size):
            part = slice(i, i + self.batch_size)
            scores += self._score(pictures[part], prompts[part])
        return torch.tensor(scores, dtype=torch.float32)

    def _score(self, pictures: list[str], prompts: list[str]) -> list[float]:
        """The scores of one request."""
        answer = self._ask(json.dumps({"prompts": prompts, "images": pictures}).encode())
        scores = answer.get("scores") if isinstance(answer, dict) else None
        if not isinstance(scores, list) or len(scores) != len(prompts):
            raise self._wrong(
                f"answered {shortened(answer)} for {len(prompts)} pictures; expected an object whose scores are a list "
                f"of {len(prompts)} numbers"
            )
        for score in scores:
            if type(score) not in (int, float) or not math.isfinite(score):
                raise self._wrong(f"gave the score {shortened(score)}; expected a finite number")
        return scores

    def _ask(self, body: bytes | None) -> Any:
        """The server's answer to GET, or to POST with this body. Tries again where it can't be reached, is busy or
        fails. UserError after ATTEMPTS, and at once for any other answer than JSON."""
        request = Request(self.url, body, {"Content-Type": "application/json", "Accept": "application/json"})
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(FIRST_WAIT * 2 ** (attempt - 1))
            try:
                with urlopen(request, timeout=TIMEOUT) as reply:
                    return self._read(reply.read())
            except HTTPError as error:
                problem = f"answered {error.code} ({shortened(error.read(500).decode(errors='replace'))})"
                if error.code < 500 and error.code != BUSY:
                    raise self._wrong(problem) from error
            except (OSError, HTTPException) as error:  # refused, reset, closed too early, no answer in time
                reason = error.reason if isinstance(error, URLError) else error
                problem = f"can't be reached ({' '.join(str(reason).split()) or type(reason).__name__})"
        raise self._wrong(f"{problem}, {ATTEMPTS} times; start it again, and continue the run with --resume")

    def _read(self, text: bytes) -> Any:
        try:
            return json.loads(text)
        except ValueError as error:
            raise self._wrong(f"answered {shortened(text.decode(errors='replace'))}; expected JSON") from error

    def _wrong(self, problem: str) -> UserError:
        return UserError(f"reward {self.name}: {self.url} {problem}")


def address(service: str) -> str:
    """The URL of the server of a name. UserError says how to give it."""
    entries = [entry.partition("=") for entry in os.environ.get(ADDRESSES, "").split()]
    known = {name: url for name, _, url in entries}
    if not known.get(service, "").startswith(("http://", "https://")):
        found = f"is {known[service]!r}" if service in known else f"is not among {', '.join(known) or 'none'}"
        raise UserError(
            f"reward http@{service}: its address {found} in {ADDRESSES}; expected {service}=http://HOST:PORT/PATH"
        )
    return known[service]


def encoded(image: Any) -> str:
    """A picture, bytes [H, W, 3], as PNG in base64."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG", compress_level=1)  # the fastest: it is sent once
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def shortened(value: Any) -> str:
    text = " ".join((value if isinstance(value, str) else repr(value)).split())
    return text if len(text) <= 100 else f"{text[:97]}..."
