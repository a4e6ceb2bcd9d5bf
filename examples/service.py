"""A service around the demo's generator: a video for a prompt, or why there is none.

    python examples/service.py runs/demo/bundle
    curl -X POST localhost:8000/videos -H 'content-type: application/json' -d '{"prompt": "..."}' -o video.mp4

200 has the video, 400 the decision on an unsafe one, 503 the decision on one that could not be checked. The
guard is set where the service is started: a request has a prompt and a seed, and nothing else. /metrics is
for Prometheus. It needs lvd[service].
"""

import argparse
import asyncio
import logging
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import diffusers
import torch
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, generate_latest
from pydantic import BaseModel, ConfigDict, Field

from lvd.capture.preview import frames_a_second, write_video
from lvd.demo.draw import GENERATOR, load_pipeline
from lvd.errors import LvdError
from lvd.guard import AuditLog, Decision, Guard, Metrics
from lvd.guard.decision_log import JsonFormatter

MAX_WAITING = 16  # requests at once: beyond, a client is told to come back
_log = logging.getLogger("service")


class VideoRequest(BaseModel):
    """What a client may choose; anything else is refused."""

    model_config = ConfigDict(extra="forbid", strict=True)
    prompt: str = Field(min_length=1, max_length=1000)
    seed: int = Field(default=0, ge=0, lt=2**63)


def create_app(guard: Guard, pipe: Any, registry: CollectorRegistry = REGISTRY) -> FastAPI:
    """The service of one pipeline, which samples one video at a time: its scheduler has one state."""
    app = FastAPI(title="Guarded videos", docs_url=None, redoc_url=None)
    worker = ThreadPoolExecutor(1)  # the queue, too
    waiting = 0

    @app.post("/videos")
    async def make_video(request: VideoRequest) -> Response:
        nonlocal waiting
        if waiting >= MAX_WAITING:
            return _error(429, f"{waiting} requests are waiting already: try again later")
        waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(worker, answer, guard, pipe, request)
        finally:
            waiting -= 1

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    @app.exception_handler(RequestValidationError)
    async def bad_request(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"] if isinstance(part, str) and part != "body")
        return _error(422, f"{place or 'the body'}: {first['msg']}")

    return app


def answer(guard: Guard, pipe: Any, request: VideoRequest) -> Response:
    """Sample the video under guard. Whole or not at all: it is sent once it is encoded, with its length."""
    try:
        result = guard(
            pipe,
            prompt=request.prompt,
            generator=torch.Generator().manual_seed(request.seed),
            output_type="np",
        )
        (frames_FHWC,), (decision,) = result.videos, result.decisions
        if frames_FHWC is None:
            return JSONResponse(_told(decision), 400 if decision.outcome == "unsafe" else 503)
        video = _encoded(frames_FHWC, frames_a_second(guard.bundle.info.origin.call))
    except Exception as error:  # its message may repeat the prompt, or name files
        _log.error("no video: %s", type(error).__name__)
        return _error(503, f"the video could not be made or checked ({type(error).__name__})")
    return Response(video, media_type="video/mp4")


def _told(decision: Decision) -> dict[str, Any]:
    """The decision for a client. Scores and reasons would show how to stay just below the threshold."""
    return {name: getattr(decision, name) for name in ("outcome", "step", "categories", "fault")}


def _encoded(frames_FHWC: Any, rate: float) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "video.mp4"
        write_video(path, frames_FHWC, rate)
        return path.read_bytes()


def _error(status: int, sentence: str) -> Response:
    return JSONResponse({"error": sentence}, status)


def main() -> None:
    parser = argparse.ArgumentParser(description="The demo's generator under guard, on loopback.")
    parser.add_argument("bundle", help="what evaluate.py exported")
    parser.add_argument("--digest", help="the bundle's digest, as evaluate.py printed it")
    parser.add_argument("--audit", default="audit.jsonl", help="a log of the decisions")
    parser.add_argument("--pipeline", type=Path, default=GENERATOR, help="the captured pipeline")
    parser.add_argument("--limit-seconds", type=float, help="of a check: then unchecked")
    parser.add_argument("--port", type=int, default=8000)
    arguments = parser.parse_args()
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    try:
        guard = Guard.from_pretrained(
            arguments.bundle,
            digest=arguments.digest,
            limit_seconds=arguments.limit_seconds,
            audit=AuditLog(arguments.audit),
            metrics=Metrics(),
        )
        pipe = load_pipeline(arguments.pipeline)
    except LvdError as error:
        raise SystemExit(f"error: {error}") from None
    diffusers.utils.logging.set_verbosity_error()  # its warnings repeat parts of prompts
    app = create_app(guard, pipe)
    uvicorn.run(app, host="127.0.0.1", port=arguments.port, log_config=None, access_log=False)


if __name__ == "__main__":
    main()
