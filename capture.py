"""Run a diffusers video pipeline over prompts and store the x0 of every denoising step."""

from pathlib import Path

import hydra
from omegaconf import DictConfig

from lvd.config import CaptureConfig, typed
from lvd.entry import run, sentences


@hydra.main(version_base="1.3", config_path="conf", config_name="capture")
def main(cfg: DictConfig) -> None:
    from lvd.capture.prompts import label, read_prompts
    from lvd.capture.recorder import record
    from lvd.report.tables import print_labels

    with sentences():
        config = typed(cfg, CaptureConfig)
        directory = Path(config.captures) / config.name
        if config.prompts is not None:
            source = config.pipeline.source()
            samples, labelled = read_prompts(Path(config.prompts), source.category_names, config.seed)
            record(source, samples, labelled, directory, batch_size=config.batch_size, preview=config.preview)
        if config.labels is not None:
            label(directory, Path(config.labels), config.seed)
        print_labels(directory)


if __name__ == "__main__":
    run(main)
