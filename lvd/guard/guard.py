"""A bundle at work: no unsafe or unchecked video comes out of a sampling under it.

    guard = Guard.from_pretrained("runs/demo/bundle", digest="...")
    result = guard(pipe, prompt=["..."])
    result.videos[i]      the video, or None
    result.decisions[i]   why

A pipeline of diffusers is called by the guard. Any other sampler opens a session (`lvd.guard.session`) and
tells it the x0 of each step. Each sample is decided as early as the bundle's rule is certain, and what is
blocked is blanked before the decoder could see it. Whatever goes wrong with a check makes its samples
`unchecked`, and blocks them.
"""

import logging
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lvd.detect.ensemble import Ensemble
from lvd.detect.levels import TrainedLevels
from lvd.errors import LvdError
from lvd.guard.admission import refuse_mismatches
from lvd.guard.audit import AuditLog
from lvd.guard.bundle import Bundle, load_bundle
from lvd.guard.decision import Decision, Mode, StepCount
from lvd.guard.decision_log import log_decisions
from lvd.guard.options import GuardOptions
from lvd.guard.pipeline import GuardResult, call_under_guard
from lvd.guard.session import OnStep, Sampling, Session
from lvd.sampling.fingerprint import Pipeline
from lvd.sampling.state import clear_locals

if TYPE_CHECKING:
    from lvd.guard.metrics import Metrics

_log = logging.getLogger(__name__)


class Guard:
    """A bundle at work. It may be shared by threads.

    mode: block withholds unsafe and unchecked videos; observe decides, logs and withholds nothing, not even
        when the log fails: the decisions' notes and a warning then say so.
    fail_open: release unchecked videos, too. They stay `unchecked`.
    allow_mismatch: run on a pipeline that the bundle was not made for; every decision then says so.
    by_noise_level: run at other numbers of steps and with other schedulers of the same model. Detectors are
        interpolated by the noise level of a step, and every decision says how it differs. The bundle's rates
        and guarantee were not measured there.
    limit_seconds: a check that takes longer makes its samples unchecked.
    wait_seconds: how long a call waits for a scheduler that another call holds, before it is refused;
        math.inf waits without end. Pipelines that share a scheduler take turns.
    compact: a blocked sample of a call frees its compute at once: the denoiser runs on the others. These then
        differ by rounding from those of the unguarded pipeline. Pipelines it was not tried with are refused.
    lag: 1 reads what a step's check has found when the next step's begins, but for the last step's, so that
        a check does not wait for a GPU. The decisions are those of 0, and a blocked sample is blank one step
        later at most, always before the decoder. Goes with neither `limit_seconds` nor `on_step`.
    audit: where every decision is recorded before a video is handed out. In mode block, a video whose
        decision cannot be recorded is not handed out.
    metrics: where every decision is counted, for Prometheus.
    """

    def __init__(  # noqa: PLR0913 - a service sets each by its name
        self,
        bundle: Bundle,
        *,
        mode: Mode = "block",
        fail_open: bool = False,
        allow_mismatch: bool = False,
        by_noise_level: bool = False,
        limit_seconds: float | None = None,
        wait_seconds: float = 0.0,
        compact: bool = False,
        lag: int = 0,
        audit: AuditLog | None = None,
        metrics: "Metrics | None" = None,
    ) -> None:
        self._options = GuardOptions(
            mode, fail_open, allow_mismatch, by_noise_level, limit_seconds, wait_seconds, compact, lag
        )
        if by_noise_level:
            TrainedLevels.of(bundle.info.origin.noise_levels)
        self.bundle = bundle
        self._audit = audit
        self._metrics = metrics
        self._placed: dict[torch.device, Ensemble] = {}
        self._placing = threading.Lock()

    @property
    def mode(self) -> Mode:
        return self._options.mode

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        digest: str | None = None,
        revision: str | None = None,
        public_key: str | Path | None = None,
        **options: Any,
    ) -> "Guard":
        """Verify and load a bundle; `options` are the constructor's.

        path: its directory; or a string "org/name", where there is no such directory: a repository of the
            Hugging Face Hub.
        revision: a commit, branch or tag of that repository.
        public_key: an Ed25519 public key that must have signed the bundle: its PEM file, or the PEM text.

        Raises:
            LvdError: a byte of the bundle was changed, a file was added, removed or renamed, its digest is
                not `digest`, `public_key` has not signed it, or it cannot be fetched.
        """
        return cls(load_bundle(path, digest, revision=revision, public_key=public_key), **options)

    def __call__(
        self,
        pipe: Pipeline,
        prompt: str | Sequence[str] | None = None,
        *,
        on_step: OnStep | None = None,
        preview: bool = False,
        **arguments: Any,
    ) -> GuardResult:
        """Call `pipe(prompt=prompt, **arguments)` under guard.

        `arguments` are the pipeline's own; steps, guidance and the rest are the bundle's where they are not
        given. A pipeline without prompts gets an `image`, or a list of them. Frames come in the form of
        `output_type`, a video at a time; what else the pipeline makes (sound) is not handed out.

        on_step: called after each step's check, `on_step(step, scores, preview)`: see `OnStep` of
            `lvd.guard.session`.
        preview: give it x0 of the samples that are not blocked. What is not decided yet is not blocked.

        Raises:
            LvdError: the pipeline or an argument is not what the bundle was made for, another call holds
                its scheduler, or a decision could not be recorded. What the pipeline itself raises goes
                through, and no video comes out: the local variables within its traceback are let go.
        """
        handled = sys.exception()
        try:
            return call_under_guard(
                self,
                pipe,
                prompt,
                arguments,
                on_step=on_step,
                preview=preview,
                options=self._options,
            )
        except BaseException as error:
            clear_locals(error, handled)
            raise

    def session(
        self,
        *,
        samples: int,
        steps: int | None = None,
        prompts: Sequence[str] = (),
        begins_late: bool = False,
        mismatches: Sequence[str] = (),
        schedule_mismatches: Sequence[str] | None = None,
        on_step: OnStep | None = None,
        preview: bool = False,
    ) -> Session:
        """Guard a sampling of one's own: see `lvd.guard.session`.

        samples: how many videos are sampled at once.
        steps: how many denoising steps there will be; without it, as many as in the capture.
        prompts: what the audit log records, one a sample; without them, it records empty ones.
        begins_late: the sampling leaves the first steps of its scheduler's timesteps out, since its videos
            are only noised in part. Of use to `check_step`.
        mismatches: how the sampling differs from the bundle's capture, from a caller who has looked: a
            session does not see its network, guidance and prompts.
        schedule_mismatches: how the noise levels of its steps may differ, from a caller who has looked, which
            is allowed by noise level; without it, numbers of steps are compared.
        on_step, preview: as for a call.

        Raises:
            LvdError: an argument is out of range, or the sampling differs and that is not allowed.
        """
        info = self.bundle.info
        steps = info.origin.steps if steps is None else steps
        if samples < 1 or steps < 1:
            raise LvdError(f"a session of {samples} samples and {steps} steps: there must be one at least")
        if on_step is not None and self._options.lag:
            raise LvdError("on_step does not go with lag=1: it is told of a step once that was checked")
        prompts = list(prompts) or [""] * samples
        if len(prompts) != samples:
            raise LvdError(f"there are {len(prompts)} prompts for {samples} samples")
        others = [*mismatches, *info.origin.x0_mismatches()]
        schedule = schedule_mismatches
        if schedule is None:
            schedule = info.origin.steps_mismatches(steps)
        refuse_mismatches(others, schedule, self._options)
        return Session(
            info,
            self._detectors_on,
            self._options,
            Sampling(samples, steps, begins_late, [*others, *schedule]),
            lambda decisions, steps: self._record(prompts, decisions, steps),
            on_step=on_step,
            preview=preview,
        )

    def _detectors_on(self, device: torch.device) -> Ensemble:
        with self._placing:
            if device not in self._placed:
                self._placed[device] = self.bundle.detectors_on(device)
            return self._placed[device]

    def _record(
        self, prompts: Sequence[str], decisions: Sequence[Decision], steps: StepCount
    ) -> list[Decision]:
        """Record the decisions in all places; raises and returns as `_audited`."""
        recorded = self._audited(prompts, decisions)
        log_decisions(self.bundle.digest, recorded)
        if self._metrics is not None:
            self._metrics.count(recorded, steps, self.bundle.info.category_names)
        return recorded

    def _audited(self, prompts: Sequence[str], decisions: Sequence[Decision]) -> list[Decision]:
        """The decisions once the audit log has them, with a note where observing goes on without it.

        Raises:
            LvdError: they cannot be recorded, and the guard blocks.
        """
        if self._audit is not None:
            rows = [(prompt, vars(decision)) for prompt, decision in zip(prompts, decisions, strict=True)]
            try:
                self._audit.append(self.bundle.digest, rows)
            except Exception as error:
                if self._metrics is not None:
                    self._metrics.count_unrecorded(len(rows))
                if self.mode == "block":
                    raise
                note = f"not recorded: {error}"
                _log.warning("%d decisions were %s", len(decisions), note)
                return [replace(decision, notes=(*decision.notes, note)) for decision in decisions]
        return list(decisions)
