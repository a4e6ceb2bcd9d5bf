"""Run a diffusers video pipeline over prompts and store the x0 of every denoising step."""

import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

from lvd.axes import expanded
from lvd.config import CaptureConfig, typed
from lvd.entry import exit_on_user_error, leave_ctrl_c_to_joblib, run


@hydra.main(version_base="1.3", config_path="conf", config_name="capture")
def capture(cfg: DictConfig) -> None:
    from lvd.capture.labels import label
    from lvd.capture.prompts import read_prompts
    from lvd.capture.recorder import record
    from lvd.latents.verify import refuse_damage, verify
    from lvd.report.tables import print_labelling, print_labels, print_verified

    leave_ctrl_c_to_joblib()
    with exit_on_user_error():
        config = typed(cfg, CaptureConfig)
        directory = Path(config.captures) / config.name
        prompts, safe_prompts = config.prompts_file(), config.safe_prompts_file()
        alpha: dict[str, float | None] = {}
        if config.source == "uvd":
            from lvd.uvd.importer import import_uvd

            import_uvd(
                config.pipeline,
                config.videos(),
                Path(str(config.labels)),
                directory,
                safe=config.safe_videos(),
                held_out=None if config.eval is None else Path(config.eval),
                seed=config.seed,
            )
        else:
            if prompts is not None:
                names, videos = config.pipeline.category_names, config.videos_per_prompt
                samples = read_prompts(prompts, names, config.seed, safe_prompts, videos)
                record(config.pipeline, samples, directory, config, folder=prompts.folder)
            if config.labels is not None:
                labels = Path(config.labels)
                found = label(directory, labels, config.seed, config.unnamed, config.agreement)
                print_labelling(labels, found)
                alpha = found.alpha
        if config.verify:
            findings = verify(directory)
            print_verified(directory, findings)
            refuse_damage(directory, findings)
        elif config.worker is None:
            print_labels(directory, alpha)
        if config.page or config.label_studio:
            from lvd.labelling.write import write_for_labelling

            run_dir = None if config.run is None else Path(config.runs) / config.run
            suggested = None if config.suggestions is None else Path(config.suggestions)
            kinds = {"page": config.page, "label_studio": config.label_studio}
            write_for_labelling(directory, run=run_dir, suggestions=suggested, **kinds)


def main() -> None:
    sys.argv[1:] = expanded(sys.argv[1:], ("worker",), "processes")
    capture()


if __name__ == "__main__":
    run(main)
