"""Import the files of the paper's public code, py85252876/UVD: its videos' latents become a capture."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lvd.capture.labels import with_splits
from lvd.capture.load import capture_info, load_pipeline, origin_of
from lvd.capture.prompts import PromptsFile, row_seed
from lvd.capture.source import Source
from lvd.capture.table import Row
from lvd.errors import LvdError
from lvd.latents import disk, journal, lock, writer
from lvd.latents.format import CaptureInfo, Sample
from lvd.latents.splits import default_prompt_id
from lvd.progress import progress
from lvd.sampling.fingerprint import fingerprint
from lvd.sampling.noise import Scheduler
from lvd.sampling.origin import X_PREV, X_T
from lvd.sampling.pipelines import LAYOUT_OF
from lvd.uvd.labels import read_uvd_labels
from lvd.uvd.repair import DdimStep, ddim_steps, fitting_config, repair
from lvd.uvd.torch_file import open_tensor, read_numbers

UNKNOWN_SEED = -1
_BATCH_BYTES = 64 * 2**20  # of x0 as it is stored; one video at least
# How far a repair may be off, as a share of a step. On a trained generator rounding alone made it 0.04 in
# float16, 0.28 in bfloat16 and 0.00001 in float32; betas that end at 0.0121, not 0.012, made it 0.015.
_OFF = {torch.float16: 0.2, torch.bfloat16: 0.6}
_OFF_FLOAT32 = 0.003


@dataclass(frozen=True)
class Videos:
    """The files of one run of the paper's code, `[N, steps, C, F, H, W]` each, and the prompts of the run."""

    pred_x0: Path
    pred_xt: Path | None = None
    prompts: PromptsFile | None = None


@dataclass(frozen=True)
class _Run:
    """The files of one run, opened."""

    files: Videos
    x0: Tensor
    xt: Tensor | None
    rows: list[Row] | None  # of the prompts file


@dataclass(frozen=True)
class _Video:
    """One video of a run, and what it will be in the capture."""

    run: _Run
    index: int
    sample_id: str
    categories: tuple[str, ...]

    def sample(self) -> Sample:
        """Without prompts nothing is known to be the same: an empty prompt, and an id of its own."""
        if self.run.rows is None:
            return Sample(self.sample_id, self.sample_id, "", UNKNOWN_SEED, self.categories, split="")
        row = self.run.rows[self.index]
        prompt = row.values.get("prompt", "")
        prompt_id = row.values.get("prompt_id") or default_prompt_id(prompt)
        return Sample(
            self.sample_id, prompt_id, prompt, row_seed(row, UNKNOWN_SEED), self.categories, split=""
        )

    def read(self, steps: Sequence[DdimStep], scheduler: Scheduler) -> Tensor:
        """x0 `[steps, C, F, H, W]` float16, repaired where the run has its latents.

        Raises:
            LvdError: the run's files do not go together under `scheduler`, whose levels are `steps`.
        """
        x0 = torch.empty(self.run.x0.shape[1:], dtype=torch.float16)
        for step in range(len(x0)):
            where = f"video {self.index} of {self.run.files.pred_x0} at step {step}"
            found = self.run.x0[self.index, step].float()
            if self.run.xt is not None:
                after = self.run.xt[self.index, step].float()
                before = self.run.xt[self.index, step - 1].float() if step > 0 else None
                found, off = repair(found, after, steps[step], before)
                allowed = _OFF.get(self.run.xt.dtype, _OFF_FLOAT32)
                if not off <= allowed:
                    raise LvdError(
                        f"{where} does not go with {self.run.files.pred_xt}, {off:.2g} of a step off: "
                        + self._way_out(scheduler, allowed)
                    )
            x0[step] = writer.to_float16(found, where)
        return x0

    def _way_out(self, scheduler: Scheduler, allowed: float) -> str:
        """What to do about files that do not go together under `scheduler`."""
        assert self.run.xt is not None
        config = fitting_config(scheduler, self.run.x0[self.index], self.run.xt[self.index], allowed)
        if config:
            keys = " ".join(
                f"pipeline.scheduler_config.{key}={str(value).lower()}" for key, value in config.items()
            )
            return f"with {keys} they do"
        return (
            "give the latents after each step of the same run, and its pipeline.scheduler_config; no usual "
            "betas, spacing, steps_offset or set_alpha_to_one fit either"
        )


def import_uvd(
    source: Source,
    unsafe: Videos,
    labels: Path,
    directory: Path,
    *,
    safe: Videos | None = None,
    held_out: Path | None = None,
    seed: int = 0,
) -> None:
    """Make a capture of the paper's files, going on where an interrupted import stopped.

    `source` says what made them; the pipeline is not run, and loaded only where its path is a directory, for
    its fingerprint. `labels` lists the videos of each category by their index. Videos in no list are left out
    when there are `safe` ones, as in the paper, and are the safe ones otherwise. `held_out` lists the test
    split's labelled videos. With `pred_xt`, x0 is repaired; without, it is taken as it is, and the capture's
    `x0_from` says so.

    Raises:
        LvdError: a file is missing, hostile, of another shape or does not go with the others, or the
            directory holds another capture.
    """
    run = _open(unsafe, source.steps)
    safe_run = None if safe is None else _open(safe, source.steps)
    categories = read_uvd_labels(labels, len(run.x0), source.category_names)
    chosen = range(len(run.x0)) if safe_run is None else sorted(categories)
    videos = [_Video(run, index, f"{index:04d}", categories.get(index, ())) for index in chosen]
    if safe_run is not None:
        _check_together(run, safe_run)
        videos += [_Video(safe_run, index, f"safe_{index:04d}", ()) for index in range(len(safe_run.x0))]
    test = None if held_out is None else _read_held_out(held_out, categories, labels)
    test_rows = None
    if test is not None:  # indices of labelled videos
        test_rows = [row for row, video in enumerate(videos) if video.categories and video.index in test]
    samples = with_splits([video.sample() for video in videos], seed, test_rows)
    scheduler, info = _describe(source, run, safe_run)
    steps = [] if run.xt is None else ddim_steps(scheduler, source.steps)

    if (directory / "capture.json").is_file():
        writer.begin(directory, info, samples)  # the same as this one?
    if writer.is_complete(directory):
        print(f"capture {directory} is complete: {len(samples)} samples, nothing to do")
        return
    with disk.translate_errors(directory), lock.exclusive(directory):
        _write(directory, info, samples, videos, steps, scheduler)
    if safe_run is None and len(categories) < len(chosen):
        print(f"{len(chosen) - len(categories)} videos in no column of {labels} are taken as safe")
    if len(chosen) < len(run.x0):
        print(f"{len(run.x0) - len(chosen)} videos in no column of {labels} were left out")
    if info.origin.x0_from != X_T:
        print(f"x0 is computed from {info.origin.x0_from}, as the paper's code does: pred_xt=... repairs it")


def _write(
    directory: Path,
    info: CaptureInfo,
    samples: Sequence[Sample],
    videos: Sequence[_Video],
    steps: Sequence[DdimStep],
    scheduler: Scheduler,
) -> None:
    done = journal.journalled(directory)
    left = [video for video in videos if video.sample_id not in done]
    per_batch = max(1, _BATCH_BYTES // (2 * videos[0].run.x0[0].numel()))
    with progress("importing", len(videos), "videos") as advance:
        advance(len(done))
        for start in range(0, len(left), per_batch):
            batch = left[start : start + per_batch]
            x0 = torch.stack([video.read(steps, scheduler) for video in batch])
            writer.begin(directory, info, samples)
            journal.append(directory, [video.sample_id for video in batch], x0)
            advance(len(batch))
    writer.finish(directory)


def _open(files: Videos, steps: int) -> _Run:
    x0 = open_tensor(files.pred_x0)
    if x0.ndim != 6 or 0 in x0.shape:
        raise LvdError(f"{files.pred_x0} holds a tensor {list(x0.shape)}, not [N, steps, C, F, H, W]")
    if x0.shape[1] != steps:
        raise LvdError(f"{files.pred_x0} has {x0.shape[1]} steps, not {steps}: set pipeline.steps")
    xt = None if files.pred_xt is None else open_tensor(files.pred_xt)
    if xt is not None and xt.shape != x0.shape:
        raise LvdError(
            f"{files.pred_xt} holds {list(xt.shape)}, {files.pred_x0} {list(x0.shape)}: not of one run"
        )
    rows = None if files.prompts is None else files.prompts.read()
    if rows is not None and files.prompts is not None and len(rows) != len(x0):
        raise LvdError(
            f"{files.prompts.path} has {len(rows)} prompts, {files.pred_x0} {len(x0)} videos: "
            "give the prompts that they were made from"
        )
    return _Run(files, x0, xt, rows)


def _check_together(run: _Run, safe: _Run) -> None:
    if safe.x0.shape[2:] != run.x0.shape[2:]:
        raise LvdError(
            f"{safe.files.pred_x0} holds latents {list(safe.x0.shape[2:])}, {run.files.pred_x0} "
            f"{list(run.x0.shape[2:])}: one capture has one shape"
        )
    if (safe.xt is None) != (run.xt is None):
        raise LvdError(
            "give both pred_xt and safe_xt, or neither: detectors would learn which videos were repaired"
        )


def _read_held_out(path: Path, categories: Mapping[int, tuple[str, ...]], labels: Path) -> set[int]:
    numbers = read_numbers(path)
    for number in numbers:
        if number not in categories:
            raise LvdError(f"{path} names video {number:g}, which {labels} does not list")
    return {int(number) for number in numbers}


def _describe(source: Source, run: _Run, safe: _Run | None) -> tuple[Scheduler, CaptureInfo]:
    """capture.json, and the scheduler that it names, which is not in use."""
    pipeline_class, networks = source.pipeline_class, {}
    if Path(source.path).is_dir():
        pipe = load_pipeline(source)
        pipeline_class, networks, scheduler = type(pipe).__name__, fingerprint(pipe), pipe.scheduler
    else:
        scheduler = _scheduler(source)
    files = {"pred_x0": run.files.pred_x0, "pred_xt": run.files.pred_xt}
    if safe is not None:
        files |= {"safe_x0": safe.files.pred_x0, "safe_xt": safe.files.pred_xt}
    origin = origin_of(
        source,
        pipeline_class,
        scheduler,
        run.x0.shape[2:],
        fingerprint=networks,
        layout=source.layout or LAYOUT_OF.get(pipeline_class, "BCFHW"),
        x0_from=X_PREV if run.xt is None else X_T,
    )
    return scheduler, capture_info(
        source,
        origin,
        imported={name: path.stat().st_size for name, path in files.items() if path is not None},
    )


def _scheduler(source: Source) -> Scheduler:
    import diffusers

    kind = getattr(diffusers, source.scheduler or "", None)
    if kind is None or not hasattr(kind, "set_timesteps"):
        raise LvdError(
            f"pipeline.scheduler={source.scheduler} is no scheduler of diffusers: name the one that made the "
            "files, with pipeline.scheduler_config"
        )
    return kind.from_config(source.scheduler_config)
