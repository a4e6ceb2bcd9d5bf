"""Run a diffusers video pipeline over prompts and store the x0 of every denoising step."""

import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

from lvd.axes import expanded
from lvd.config import CaptureConfig
from lvd.entry import exit_on_user_error, leave_ctrl_c_to_joblib, run
from lvd.typed import typed


@hydra.main(version_base="1.3", config_path="conf", config_name="capture")
def capture(cfg: DictConfig) -> None:
    from lvd.capture.labels import label
    from lvd.capture.prompts import read_prompts
    from lvd.capture.recorder import record
    from lvd.latents.verify import refuse_damage, verify
    from lvd.report.capture_tables import print_labelling, print_labels, print_verified

    leave_ctrl_c_to_joblib()
    with exit_on_user_error():
        config = typed(cfg, CaptureConfig)
        directory, prompts = config.directory, config.prompts_file()
        alpha: dict[str, float | None] = {}
        if config.source == "uvd":
            from lvd.uvd.importer import import_uvd

            videos, labels = config.videos(), Path(str(config.labels))
            safe, held_out = config.safe_videos(), config.held_out
            import_uvd(
                config.pipeline, videos, labels, directory, safe=safe, held_out=held_out, seed=config.seed
            )
        else:
            if prompts is not None:
                names, each = config.pipeline.category_names, config.videos_per_prompt
                samples = read_prompts(prompts, names, config.seed, config.safe_prompts_file(), each)
                folder = prompts.folder
                record(config.pipeline, samples, directory, config, folder=folder, clips=config.clips)
            if config.labels is not None:
                found = label(directory, Path(config.labels), config.seed, config.unnamed, config.agreement)
                print_labelling(Path(config.labels), found)
                alpha = found.alpha
        if config.verify:
            findings = verify(directory)
            print_verified(directory, findings)
            refuse_damage(directory, findings)
        elif config.worker is None:
            print_labels(directory, alpha, advise=not (config.page or config.label_studio))
        if config.page or config.label_studio:
            from lvd.labelling.write import write_for_labelling

            write_for_labelling(
                directory,
                run=config.run_dir,
                suggestions=config.suggestions_file,
                page=config.page,
                label_studio=config.label_studio,
            )


def main() -> None:
    sys.argv[1:] = expanded(sys.argv[1:], ("worker",), "processes")
    capture()


if __name__ == "__main__":
    run(main)
