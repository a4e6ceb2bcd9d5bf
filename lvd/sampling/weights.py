"""What a guard recognises a network's weights by, where the capture was made with `weights=true`."""

import hashlib
import json
from typing import Any

import torch
from torch import Tensor

from lvd.errors import LvdError
from lvd.sampling.fingerprint import Pipeline, denoisers

_WHOLE = 2**24  # a network of so many numbers is read whole; of a larger one
_SAMPLED = 4096  # so many numbers of each tensor are read, evenly spaced from the first to the last


def weights_digests(pipe: Pipeline) -> dict[str, str]:
    """SHA-256 over the weights of each network that denoises, adapters and all, by the network's name.

    Names, dtypes and shapes of all tensors go into it, and their numbers: all of a small network, a sample of
    a large one. Weights in another dtype are other weights.

    Raises:
        LvdError: they cannot be read, since they are elsewhere (sequential offload) or packed.
    """
    return {
        name: _digest(name, part) for name, part in denoisers(pipe).items() if hasattr(part, "state_dict")
    }


def _digest(network: str, part: Any) -> str:
    tensors = {
        name.replace("_orig_mod.", ""): tensor  # of a part of it that was compiled
        for name, tensor in part.state_dict().items()
        if isinstance(tensor, Tensor)
    }
    sampled = sum(tensor.numel() for tensor in tensors.values()) > _WHOLE
    sha256 = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        sha256.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        try:
            flat = tensor.detach().reshape(-1)
            if sampled and len(flat) > _SAMPLED:
                steps = torch.arange(_SAMPLED, device=flat.device)
                flat = flat[steps * (len(flat) - 1) // (_SAMPLED - 1)]
            sha256.update(flat.contiguous().cpu().view(torch.uint8).numpy().data)
        except (NotImplementedError, RuntimeError, TypeError) as error:
            reason = str(error).splitlines()[0]
            raise LvdError(f"the weights of the {network} cannot be read: {name}: {reason}") from None
    return sha256.hexdigest()
