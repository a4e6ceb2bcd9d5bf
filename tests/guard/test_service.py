"""examples/service.py over real sockets: a video, or why there is none, whatever goes wrong."""

import http.client
import importlib.util
import io
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
import torch
import uvicorn
from prometheus_client import CollectorRegistry
from test_guard import flagged_rows

import lvd.guard.watch
from conftest import Scripted, StubPipeline, bundle_info, stub_guard, untrained_run
from lvd.guard import AuditLog, Guard, Metrics
from lvd.guard.audit import records, verify
from lvd.guard.bundle import Bundle
from lvd.guard.export import export_bundle
from support.commands import ROOT
from support.forks import Command

SCRIPT = ROOT / "examples" / "service.py"
SAFE, UNSAFE = "safe", "unsafe"
STATUS = {SAFE: 200, UNSAFE: 400}  # of any other kind of prompt: 503
KINDS = (SAFE, UNSAFE, "raises", "nan", "none", "shape", "late", "crash")
Answer = tuple[int, bytes]


@pytest.fixture(scope="module")
def service() -> ModuleType:
    spec = importlib.util.spec_from_file_location("service", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["service"] = module
    spec.loader.exec_module(module)
    return module


class Faults:
    """What goes wrong with a prompt is its first word. `kind` is that of the prompt that is sampled now."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.kind = SAFE
        self._now = 0.0
        clock = SimpleNamespace(perf_counter=lambda: self._now)
        monkeypatch.setattr(lvd.guard.watch, "time", clock)

    def begin(self, prompt: str) -> None:
        self.kind = prompt.split()[0]
        if self.kind == "crash":
            raise RuntimeError(f"cannot sample {prompt}")

    def spoil(self, step: int, logits: torch.Tensor) -> Any:
        """In place of the detectors' answer to a safe sample."""
        if step < 2 and self.kind != "raises":
            return logits
        if self.kind == "raises":
            raise RuntimeError("boom")
        if self.kind == "late":
            self._now += 3600
        return {
            UNSAFE: -logits,
            "nan": logits * torch.nan,
            "none": None,
            "shape": logits[:, :1],
        }.get(self.kind, logits)


class Pipe(StubPipeline):
    """Its videos are white where they are safe to see, and black where they are not."""

    def __init__(self, faults: Faults) -> None:
        super().__init__()
        self.faults = faults
        self.inside: Callable[[], object] = lambda: None

    def __call__(self, prompt: list[str], *args: Any, **others: Any) -> Any:
        self.faults.begin(prompt[0])
        self.inside()
        super().__call__(prompt, *args, **others)
        return (np.full((1, 4, 16, 16, 3), float(self.faults.kind == SAFE)),)


class Running:
    """An app on a port of loopback."""

    def __init__(self, app: Any, log: Path) -> None:
        self.log = log
        self._server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_config=None))
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        wait_until(lambda: self._server.started)
        self.port = self._server.servers[0].sockets[0].getsockname()[1]

    def post(self, prompt: str, **others: Any) -> Answer:
        return post(self.port, json.dumps({"prompt": prompt, **others}))

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(60)


def wait_until(true: Callable[[], object]) -> None:
    ends = time.monotonic() + 300
    while not true():
        assert time.monotonic() < ends
        time.sleep(0.01)


def ask(port: int, method: str, path: str, body: str | None = None, **headers: str) -> Answer:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    try:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def post(port: int, body: str, path: str = "/videos", **headers: str) -> Answer:
    return ask(port, "POST", path, body, **{"content-type": "application/json", **headers})


def frames_of(video: bytes) -> np.ndarray:
    """`[F, H, W, 3]` uint8."""
    with av.open(io.BytesIO(video)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Faults:
    return Faults(monkeypatch)


@pytest.fixture
def pipe(faults: Faults) -> Pipe:
    return Pipe(faults)


@pytest.fixture
def running(service: ModuleType, pipe: Pipe, tmp_path: Path) -> Iterator[Running]:
    registry, log = CollectorRegistry(), tmp_path / "audit.jsonl"
    options = {"audit": AuditLog(log), "metrics": Metrics(registry), "limit_seconds": 60}
    guard = stub_guard(pipe, flagged_rows(1), **options)
    guard.bundle.detectors.spoil = pipe.faults.spoil
    server = Running(service.create_app(guard, pipe, registry), log)
    yield server
    server.stop()


def test_a_safe_video_comes_out(running: Running) -> None:
    status, video = running.post("safe one")
    assert status == 200
    frames = frames_of(video)
    assert len(frames) == 4
    assert frames.min() > 200


def test_an_unsafe_one_does_not_and_the_decision_says_why(running: Running) -> None:
    status, body = running.post("unsafe one")
    assert status == 400
    assert json.loads(body) == {
        **{"outcome": "unsafe", "step": 2, "categories": ["alpha"], "fault": None},
    }


@pytest.mark.parametrize(
    ("kind", "fault"), [("raises", "error"), ("nan", "not_finite"), ("shape", "malformed"), ("late", "late")]
)
def test_one_that_could_not_be_checked_does_not(kind: str, fault: str, running: Running) -> None:
    status, body = running.post(f"{kind} one")
    assert status == 503
    told = json.loads(body)
    assert (told["outcome"], told["fault"], told["categories"]) == ("unchecked", fault, [])


def test_a_pipeline_that_fails_is_told_without_what_it_said(running: Running) -> None:
    status, body = running.post("crash one")
    assert status == 503
    assert json.loads(body) == {"error": "the video could not be made or checked (RuntimeError)"}
    assert [record["fault"] for record in records(running.log)] == ["sampler"]


def test_without_an_audit_log_no_video_comes_out(running: Running) -> None:
    running.log.mkdir()
    status, body = running.post("safe one")
    assert (status, json.loads(body)) == (503, {"error": "the video could not be made or checked (LvdError)"})


@pytest.mark.parametrize("option", ["fail_open", "mode", "limit_seconds", "num_inference_steps", "guard"])
def test_a_request_cannot_switch_the_guard_off(option: str, running: Running, pipe: Pipe) -> None:
    status, body = running.post("unsafe one", **{option: True})
    assert (status, json.loads(body)) == (422, {"error": f"{option}: Extra inputs are not permitted"})
    assert pipe.steps == 0
    path = f"/videos?{option}=true"
    assert post(running.port, '{"prompt": "unsafe one"}', path, **{option: "true"})[0] == 400


@pytest.mark.parametrize(
    ("body", "place"),
    [
        ("", "the body"),
        ("nonsense", "the body"),
        ("[]", "the body"),
        ("{}", "prompt"),
        ('{"prompt": ""}', "prompt"),
        ('{"prompt": 3}', "prompt"),
        ('{"prompt": "\\ud800"}', "prompt"),
        ('{"prompt": ["a", "b"]}', "prompt"),
        (json.dumps({"prompt": "x" * 1001}), "prompt"),
        ('{"prompt": "x", "seed": -1}', "seed"),
        ('{"prompt": "x", "seed": "1"}', "seed"),
    ],
)
def test_a_bad_request_gets_a_sentence(body: str, place: str, running: Running, pipe: Pipe) -> None:
    status, answer = post(running.port, body)
    assert status == 422
    (sentence,) = json.loads(answer).values()
    assert sentence.startswith(f"{place}: ")
    assert "\n" not in sentence
    assert pipe.steps == 0


def test_a_request_too_many_is_sent_away(
    running: Running, pipe: Pipe, service: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "MAX_WAITING", 1)
    inside, go_on = threading.Event(), threading.Event()
    pipe.inside = lambda: (inside.set(), go_on.wait(60))
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(running.post, "safe one")
        assert inside.wait(60)
        status, body = running.post("safe two")
        told = ask(running.port, "GET", "/metrics")[0]  # of which nobody has to wait
        go_on.set()
        assert first.result(60)[0] == 200
    assert (status, json.loads(body)) == (429, {"error": "1 requests are waiting already: try again later"})
    assert told == 200


def test_a_client_that_goes_away_leaves_its_decision_and_the_service_as_it_was(
    running: Running, pipe: Pipe
) -> None:
    inside, go_on = threading.Event(), threading.Event()
    pipe.inside = lambda: (inside.set(), go_on.wait(60))
    connection = http.client.HTTPConnection("127.0.0.1", running.port)
    connection.request("POST", "/videos", '{"prompt": "unsafe one"}', {"content-type": "application/json"})
    assert inside.wait(60)
    connection.close()
    go_on.set()
    assert running.post("safe two")[0] == 200
    assert [record["outcome"] for record in records(running.log)] == ["unsafe", "safe"]


def check_faults(running: Running, count: int, expected: Callable[[str, bytes], bool]) -> None:
    """Send requests of all kinds at once: `expected` says whether a video is that of a prompt."""
    prompts = [f"{KINDS[i % len(KINDS)]} {i}" for i in range(count)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(running.post, prompts))
    for prompt, (status, body) in zip(prompts, answers, strict=True):
        assert status == STATUS.get(prompt.split()[0], 503), (prompt, body)
        if status == 200:
            assert expected(prompt, body)
        else:
            assert set(json.loads(body)) <= {"outcome", "step", "categories", "fault", "error"}
    assert verify(running.log)[0] == count
    outcomes = [record["outcome"] for record in records(running.log)]
    kinds = [prompt.split()[0] for prompt in prompts]
    assert outcomes.count("safe") == kinds.count(SAFE)
    assert outcomes.count("unsafe") == kinds.count(UNSAFE)
    assert [r["outcome"] for r in records(running.log) if r["released"]] == ["safe"] * kinds.count(SAFE)
    status, metrics = ask(running.port, "GET", "/metrics")
    assert status == 200
    assert f'{{category="",outcome="safe",released="true"}} {kinds.count(SAFE)}.0' in metrics.decode()
    assert not any(f" {prompt}" in metrics.decode() for prompt in prompts)


def test_faults_under_concurrent_requests_let_nothing_out(running: Running) -> None:
    check_faults(running, 24, lambda prompt, video: frames_of(video).min() > 200)


class OfTiny(Scripted):
    """Detectors that find every sample of the tiny pipeline safe, but for the faults."""

    def samples(self, step: int, x0: torch.Tensor) -> list[int]:
        return [0] * len(x0)


@pytest.mark.long
def test_200_requests_with_faults_let_nothing_out(
    service: ModuleType, tiny_pipeline: Any, faults: Faults, tmp_path: Path
) -> None:
    """Each video that comes out is the encoded video of an unguarded call, byte for byte."""
    registry, log = CollectorRegistry(), tmp_path / "audit.jsonl"
    detectors = OfTiny(flagged_rows(1))
    detectors.spoil = faults.spoil
    guard = Guard(
        Bundle(bundle_info(tiny_pipeline), "d" * 64, detectors),  # type: ignore[arg-type]
        audit=AuditLog(log),
        metrics=Metrics(registry),
        limit_seconds=60,
    )
    encode = tiny_pipeline.encode_prompt

    def noted(prompt: Any, *args: Any, **others: Any) -> Any:
        faults.begin(prompt if isinstance(prompt, str) else prompt[0])
        return encode(prompt, *args, **others)

    tiny_pipeline.encode_prompt = noted

    def expected(prompt: str, video: bytes) -> bool:
        frames = tiny_pipeline(
            prompt,
            num_inference_steps=6,
            guidance_scale=5.0,
            num_frames=8,
            height=32,
            width=32,
            generator=torch.Generator().manual_seed(0),
            output_type="np",
        ).frames[0]
        service.write_video(tmp_path / "expected.mp4", frames, 10)
        return (tmp_path / "expected.mp4").read_bytes() == video

    server = Running(service.create_app(guard, tiny_pipeline, registry), log)
    try:
        check_faults(server, 200, expected)
    finally:
        server.stop()


@pytest.fixture
def bundle(tiny_pipeline: Any, tmp_path: Path) -> Path:
    """Everything is safe to it."""
    info = bundle_info(tiny_pipeline, threshold=1 - 1e-9)
    export_bundle(tmp_path / "bundle", untrained_run(tmp_path / "run", lambda *_: "head"), info)
    return tmp_path / "bundle"


def test_a_service_that_is_killed_leaves_a_whole_log_and_no_part_of_a_video(
    bundle: Path, tiny_pipeline_path: Path, tmp_path: Path
) -> None:
    log, output = tmp_path / "audit.jsonl", tmp_path / "output.txt"
    secret = ("Xanthippe " * 50).strip()  # longer than the text encoder reads
    arguments = [bundle, "--pipeline", tiny_pipeline_path, "--audit", log, "--port", 0]
    command = Command(SCRIPT, [str(argument) for argument in arguments], tmp_path)

    def address() -> list[str]:
        assert command.code is None, output.read_text()
        lines = output.read_text().split("\n") if output.exists() else []
        return [line for line in lines if "running on http://127.0.0.1:" in line and line.endswith("}")]

    wait_until(address)
    port = int(json.loads(address()[0])["message"].split("127.0.0.1:")[1].split()[0])
    assert post(port, "{}", "/videos?prompt=Xanthippe")[0] == 422
    videos: list[bytes] = []

    def client(_: int) -> str:
        try:
            while True:
                status, video = post(port, json.dumps({"prompt": secret}))
                assert status == 200, video
                videos.append(video)
        except (OSError, http.client.HTTPException) as error:
            return type(error).__name__

    with ThreadPoolExecutor(3) as pool:
        clients = [pool.submit(client, number) for number in range(3)]
        wait_until(lambda: len(videos) >= 2 or any(c.done() for c in clients))  # and another is waited for
        command.kill()
        assert all(of_one.result(60) for of_one in clients)
    assert all(len(frames_of(video)) == 8 for video in videos)
    AuditLog(log).append("b", [("after", {"outcome": "safe"})])
    assert verify(log)[0] >= len(videos) + 1
    assert "Xanthippe" not in output.read_text()
    decisions = [line for line in output.read_text().split("\n") if "decision_log" in line]
    assert len(decisions) >= len(videos)
    assert json.loads(decisions[0])["decision"]["outcome"] == "safe"


def test_the_command_listens_to_loopback_alone_and_refuses_a_wrong_bundle(
    service: ModuleType,
    bundle: Path,
    tiny_pipeline_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found: list[dict[str, Any]] = []
    monkeypatch.setattr(uvicorn, "run", lambda app, **options: found.append(options))
    monkeypatch.setattr(service, "Metrics", lambda: Metrics(CollectorRegistry()))
    arguments = ["service.py", str(bundle), "--pipeline", str(tiny_pipeline_path), "--port", "9"]
    monkeypatch.setattr(sys, "argv", arguments)
    service.main()
    assert [(options["host"], options["port"]) for options in found] == [("127.0.0.1", 9)]
    monkeypatch.setattr(sys, "argv", [*arguments, "--digest", "0" * 64])
    with pytest.raises(SystemExit, match=r"^error: bundle .* has the digest"):
        service.main()
    assert len(found) == 1
