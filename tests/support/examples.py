"""What an example is typed with."""

from pathlib import Path

from conftest import StubPipeline, bundle_info, untrained_run
from lvd.decide.rules import Vote
from lvd.guard.export import export_bundle


def options_with_a_bundle(folder: Path, log: Path) -> list[str]:
    """A small bundle made in `folder`, its digest, the audit log, and the prompts "a" and "b"."""
    run = untrained_run(folder / "run", lambda name, step: "head", steps=2)
    info = bundle_info(StubPipeline(), steps=4, rule=Vote(2, 1.0, 0.999))
    digest = export_bundle(folder / "bundle", run, info)
    return [str(folder / "bundle"), "--digest", digest, "--audit", str(log), "--prompt", "a", "b"]
