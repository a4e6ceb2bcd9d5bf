"""The configuration of each job of a grid, made of one that Hydra has composed.

To compose one anew takes Hydra about as long as the fit of a head does, and they differ in category and step.
"""

from collections.abc import Sequence
from copy import copy, deepcopy
from functools import partial

from hydra._internal.config_loader_impl import get_overrides_dirname
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf

from lvd.sweep.grid import AXES


def context_of_cells(context: HydraContext, first: DictConfig) -> HydraContext:
    """A launcher's context in which each configuration is `first`, one of the grid's, but for its cell."""
    loader = copy(context.config_loader)
    loader.load_sweep_config = partial(_of_cell, first)  # type: ignore[method-assign]
    return HydraContext(config_loader=loader, callbacks=context.callbacks)


def _of_cell(first: DictConfig, master_config: DictConfig, sweep_overrides: Sequence[str]) -> DictConfig:
    """What Hydra composes of `sweep_overrides`, which are those of `first` with another category and step."""
    config = deepcopy(first)
    overrides = OverridesParser.create().parse_overrides(list(sweep_overrides))
    of_the_task = [override for override in overrides if not override.is_hydra_override()]
    for override in of_the_task:
        if override.key_or_group in AXES:
            OmegaConf.update(config, override.key_or_group, override.value())
    job = config.hydra.job
    config.hydra.overrides.task = [override.input_line for override in of_the_task]
    job.override_dirname = get_overrides_dirname(of_the_task, **job.config.override_dirname)
    OmegaConf.copy_cache(from_config=master_config, to_config=config)
    return config
