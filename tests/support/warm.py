"""What the commands import, in the process that `forks` are made from."""

import h5py  # noqa: F401
import torch
from diffusers import AnimateDiffPipeline  # noqa: F401
from hydra.core.plugins import Plugins
from transformers import CLIPTextModel, CLIPTokenizer, VideoMAEModel  # noqa: F401

import support.forks  # noqa: F401

torch.set_num_threads(1)
Plugins.instance()
