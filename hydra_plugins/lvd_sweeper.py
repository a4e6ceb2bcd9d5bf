"""The sweeper of train.py, where Hydra looks for plugins: it takes none from other packages.

Every command of Hydra imports this file; what it stands for is imported when it is used.
"""

from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class GridSweeper(Sweeper):
    """Launches the jobs of a grid that are left, all in one batch."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.config = hydra_context, config
        self._task_function = task_function

    def sweep(self, arguments: list[str]) -> None:
        from lvd.sweep.sweeper import sweep

        assert self.hydra_context is not None
        assert self.config is not None
        sweep(self.hydra_context, self._task_function, self.config, arguments)
