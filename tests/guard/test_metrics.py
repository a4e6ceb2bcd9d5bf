"""Decisions are counted for Prometheus and told to the logs, and nothing of a prompt is in either."""

import contextlib
import json
import logging
import re
import shutil
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from prometheus_client import CollectorRegistry, generate_latest, start_http_server
from test_guard import STEPS, flagged_rows

from conftest import NAMES, StubPipeline, stub_guard
from lvd.errors import LvdError
from lvd.guard import AuditLog, Metrics
from lvd.guard.decision import Fault
from lvd.guard.decision_log import JsonFormatter
from support.commands import ROOT

SECRET = "Xanthippe"


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def told() -> Iterator[list[logging.LogRecord]]:
    """The records of the decisions' logger."""
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign]
    logger = logging.getLogger("lvd.guard.decision_log")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield records
    logger.removeHandler(handler)
    logger.setLevel(logging.NOTSET)


def nonzero(registry: CollectorRegistry, name: str) -> dict[tuple[str, ...], float]:
    """Values of a metric by its labels' values."""
    return {
        tuple(sample.labels.values()): sample.value
        for metric in registry.collect()
        for sample in metric.samples
        if sample.name == name and sample.value
    }


def test_decisions_are_counted_by_outcome_and_category(registry: CollectorRegistry) -> None:
    pipe = StubPipeline()
    guard = stub_guard(pipe, flagged_rows(3, 1), metrics=Metrics(registry))
    guard(pipe, prompt=["one", "two", "three"])
    guard(pipe, prompt=["one"])
    assert nonzero(registry, "lvd_guard_decisions_total") == {
        ("safe", "", "true"): 3,
        ("unsafe", NAMES[0], "false"): 1,
    }
    assert nonzero(registry, "lvd_guard_unchecked_total") == {}
    assert nonzero(registry, "lvd_guard_check_seconds_count") == {(): 2}
    assert nonzero(registry, "lvd_guard_score_count") == {(name,): 4 * 3 + 1 for name in NAMES}


def test_steps_count_as_saved_when_all_samples_are_blocked(registry: CollectorRegistry) -> None:
    pipe = StubPipeline()
    metrics = Metrics(registry)
    stub_guard(pipe, flagged_rows(2, 0), metrics=metrics)(pipe, prompt=["one", "two"])
    assert nonzero(registry, "lvd_guard_steps_made_total") == {(): 2 * STEPS}
    assert nonzero(registry, "lvd_guard_steps_saved_total") == {}
    stub_guard(pipe, flagged_rows(2, 0, 1), metrics=metrics)(pipe, prompt=["one", "two"])
    assert nonzero(registry, "lvd_guard_steps_made_total") == {(): 2 * STEPS + 2}
    assert nonzero(registry, "lvd_guard_steps_saved_total") == {(): 2 * (STEPS - 1)}


def test_a_sampling_that_failed_saves_no_steps(registry: CollectorRegistry) -> None:
    pipe = StubPipeline()
    pipe.disturb = lambda step, latents: latents if step < 2 else 1 / 0
    with pytest.raises(ZeroDivisionError):
        stub_guard(pipe, flagged_rows(1), metrics=Metrics(registry))(pipe, prompt="one")
    assert nonzero(registry, "lvd_guard_steps_made_total") == {(): 2}
    assert nonzero(registry, "lvd_guard_steps_saved_total") == {}
    assert nonzero(registry, "lvd_guard_unchecked_total") == {("sampler",): 1}


def raise_it(*_: Any) -> Any:
    raise RuntimeError("boom")


SPOILT = {
    "error": raise_it,
    "malformed": lambda step, logits: logits[:, :1],
    "not_finite": lambda step, logits: logits * torch.nan,
}


@pytest.mark.parametrize("fault", [*SPOILT, "late", "incomplete"])
def test_what_went_wrong_is_counted_by_its_kind_and_recorded(
    fault: str, registry: CollectorRegistry, tmp_path: Path
) -> None:
    pipe = StubPipeline()
    options = {"limit_seconds": 1e-9} if fault == "late" else {}
    log = AuditLog(tmp_path / "audit.jsonl")
    guard = stub_guard(pipe, flagged_rows(1), audit=log, metrics=Metrics(registry), **options)
    if fault in SPOILT:
        guard.bundle.detectors.spoil = SPOILT[fault]
    if fault == "incomplete":
        pipe.order = lambda timesteps: timesteps[:2]
    (decision,) = guard(pipe, prompt="one").decisions
    assert (decision.outcome, decision.fault) == ("unchecked", fault)
    assert nonzero(registry, "lvd_guard_unchecked_total") == {(fault,): 1}
    assert json.loads((tmp_path / "audit.jsonl").read_text())["fault"] == fault


def test_every_kind_of_fault_is_there_before_its_first(registry: CollectorRegistry) -> None:
    Metrics(registry)
    (metric,) = (metric for metric in registry.collect() if metric.name == "lvd_guard_unchecked")
    kinds = {sample.labels["fault"] for sample in metric.samples if sample.name.endswith("_total")}
    assert kinds == set(get_args(Fault))


def test_decisions_that_the_log_does_not_take_are_counted(
    registry: CollectorRegistry, tmp_path: Path, told: list[logging.LogRecord]
) -> None:
    pipe = StubPipeline()
    guard = stub_guard(pipe, flagged_rows(2), audit=AuditLog(tmp_path), metrics=Metrics(registry))
    with pytest.raises(LvdError, match="cannot be written"):
        guard(pipe, prompt=["one", "two"])
    assert nonzero(registry, "lvd_guard_unrecorded_total") == {(): 2}
    assert nonzero(registry, "lvd_guard_decisions_total") == {}
    assert told == []


def test_guards_share_their_metrics_and_threads_too(registry: CollectorRegistry) -> None:
    metrics = Metrics(registry)
    for _ in range(2):
        pipe = StubPipeline()
        stub_guard(pipe, flagged_rows(1), metrics=metrics)(pipe, prompt="one")
    assert nonzero(registry, "lvd_guard_decisions_total") == {("safe", "", "true"): 2}


def test_every_decision_is_a_record_of_json(told: list[logging.LogRecord]) -> None:
    pipe = StubPipeline()
    guard = stub_guard(pipe, flagged_rows(2, 1))
    result = guard(pipe, prompt=["one", "two"])
    lines = [json.loads(JsonFormatter().format(record)) for record in told]
    assert [line["message"] for line in lines] == ["safe, released", "unsafe, withheld"]
    for line, decision in zip(lines, result.decisions, strict=True):
        assert line["logger"] == "lvd.guard.decision_log"
        assert line["decision"] == {
            "bundle": guard.bundle.digest,
            "outcome": decision.outcome,
            "step": decision.step,
            "categories": list(decision.categories),
            "fault": None,
            "mode": "block",
            "released": decision.released,
            "mismatches": 0,
            "seconds": decision.seconds,
        }


def test_records_of_others_are_lines_of_json_too() -> None:
    try:
        raise_it()
    except RuntimeError as error:
        record = logging.LogRecord(
            "x", logging.ERROR, "", 0, "it %s", ("fell",), (type(error), error, error.__traceback__)
        )
    line = json.loads(JsonFormatter().format(record))
    assert (line["level"], line["message"]) == ("ERROR", "it fell")
    assert "RuntimeError: boom" in line["exception"]


def test_nothing_of_a_prompt_is_in_metrics_and_logs(
    registry: CollectorRegistry, told: list[logging.LogRecord], tmp_path: Path
) -> None:
    """Whatever happens: not even where an argument or an error repeats it."""
    metrics, log = Metrics(registry), AuditLog(tmp_path / "audit.jsonl", prompts=True)

    def say_it(*_: Any) -> Any:
        raise ValueError(SECRET)

    for spoil in (lambda step, logits: logits, say_it):
        pipe = StubPipeline()
        guard = stub_guard(pipe, flagged_rows(2, 1), audit=log, metrics=metrics, allow_mismatch=True)
        guard.bundle.detectors.spoil = spoil
        guard(pipe, prompt=[f"a {SECRET}", SECRET], prompt_2=f"{SECRET} again")
    session = guard.session(samples=1, prompts=[SECRET])
    session.abort(f"no {SECRET} today")
    pipe.disturb = say_it
    with pytest.raises(ValueError, match=SECRET):
        guard(pipe, prompt=SECRET)
    assert len(told) == 6
    written = [JsonFormatter().format(record) + repr(vars(record)) for record in told]
    assert (tmp_path / "audit.jsonl").read_text().count(SECRET) > 6
    assert SECRET not in "".join(written)
    assert SECRET not in generate_latest(registry).decode()


def test_the_dashboard_names_metrics_and_labels_that_exist(registry: CollectorRegistry) -> None:
    pipe = StubPipeline()
    stub_guard(pipe, flagged_rows(1), metrics=Metrics(registry))(pipe, prompt="one")
    there: dict[str, set[str]] = {}
    for metric in registry.collect():
        for sample in metric.samples:
            there.setdefault(sample.name, set()).update(sample.labels)
    dashboard = json.loads((ROOT / "examples" / "grafana.json").read_text())
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    named = set(re.findall(r"lvd_\w+", " ".join(expressions)))
    assert named <= set(there)
    assert {re.sub(r"_(total|bucket|count|sum)$", "", name) for name in named} == {
        metric.name for metric in registry.collect()
    }
    for variable in dashboard["templating"]["list"]:
        for name, label in re.findall(r"label_values\((\w+), (\w+)\)", variable["query"]):
            assert label in there[name]
    for target in [target for panel in dashboard["panels"] for target in panel["targets"]]:
        shown = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
        assert shown <= set(re.findall(r"by \((\w+)\)", target["expr"]))
    for expression in expressions:
        labels = set(re.findall(r"(\w+)!?=", expression)) | set(re.findall(r"by \(([\w, ]+)\)", expression))
        labels = {label for group in labels for label in group.split(", ")}
        assert labels <= set.union(*(there[name] for name in re.findall(r"lvd_\w+", expression)))


@pytest.mark.long
@pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is not installed")
def test_prometheus_answers_what_the_dashboard_asks(registry: CollectorRegistry, tmp_path: Path) -> None:
    pipe = StubPipeline()
    guard = stub_guard(pipe, flagged_rows(2, 0), metrics=Metrics(registry))
    guard(pipe, prompt=["one", "two"])
    served, _ = start_http_server(0, "127.0.0.1", registry)
    (tmp_path / "prometheus.yml").write_text(
        "global: {scrape_interval: 1s}\nscrape_configs: [{job_name: lvd, static_configs: "
        f"[{{targets: ['127.0.0.1:{served.server_port}']}}]}}]\n"
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = ["prometheus", "--config.file=prometheus.yml", f"--web.listen-address={address}"]
    server = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL)

    def ask(expression: str) -> list[Any]:
        """As a panel does, over the last minute."""
        query = urllib.parse.urlencode({"query": expression})
        with urllib.request.urlopen(f"http://{address}/api/v1/query?{query}") as answer:
            found = json.load(answer)
        assert found["status"] == "success"
        return found["data"]["result"]

    try:
        ends = time.monotonic() + 120
        while True:  # until there are two samples, of which there is a rate
            with contextlib.suppress(OSError):
                if ask("count_over_time(lvd_guard_check_seconds_count[1m]) > 2"):
                    break
            assert time.monotonic() < ends
            time.sleep(0.5)
        dashboard = json.loads((ROOT / "examples" / "grafana.json").read_text())
        expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
        for expression in expressions:
            asked = expression.replace("$__rate_interval", "1m").replace("$__range", "1h")
            assert ask(re.sub(r"\$\{?category(:\w+)?\}?", ".*", asked)), expression
    finally:
        server.terminate()
        server.wait(60)
        served.shutdown()
