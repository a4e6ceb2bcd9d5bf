"""What a guard recognises a network's weights by, where the capture was made with `weights=true`."""

import hashlib
import json
import threading
import weakref
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lvd.errors import LvdError
from lvd.sampling.fingerprint import Pipeline, denoisers

_WHOLE = 2**24  # a network of so many numbers is read whole; of a larger one
_SAMPLED = 4096  # so many numbers of each tensor are read, evenly spaced from the first to the last
_PROBED = 16  # so many, about, are compared at every call, to see whether a digest still holds

# Of networks that were read: what would show that their weights changed, and their digest.
_read: "weakref.WeakKeyDictionary[Any, tuple[Any, str]]" = weakref.WeakKeyDictionary()
_reading = threading.Lock()


def weights_digests(pipe: Pipeline) -> dict[str, str]:
    """SHA-256 over the weights of each network that denoises, adapters and all, by the network's name.

    Names, dtypes and shapes of all tensors go into it, and their numbers: all of a small network, a sample of
    a large one. Weights in another dtype are other weights.

    A digest is computed again when a tensor is another one, lies elsewhere, or was written to: PyTorch counts
    that, except through `tensor.data`, NumPy or DLPack. For those a few numbers of each tensor are compared,
    so that only an edit that leaves all of them as they were goes unnoticed, until the next that is noticed.

    Raises:
        LvdError: they cannot be read, since they are elsewhere (sequential offload) or packed.
    """
    return {
        name: _current_digest(name, part)
        for name, part in denoisers(pipe).items()
        if hasattr(part, "state_dict")
    }


def _current_digest(network: str, part: Any) -> str:
    """The digest of a network, computed only when its weights may have changed since the last time."""
    signs = _signs_of_change(part)  # before its weights are read: a change meanwhile shows at the next call
    with _reading:
        known = _read.get(part) if signs is not None else None
    if known is not None and known[0] == signs:
        return known[1]
    digest = _digest(network, _tensors(part.state_dict()))
    if signs is not None:
        with _reading:
            _read[part] = signs, digest
    return digest


def _signs_of_change(part: Any) -> Any:
    """What is another value when a network's weights have changed; None: that cannot be told."""
    if not isinstance(part, torch.nn.Module):
        return None
    tensors = _tensors(part.state_dict(keep_vars=True))
    probes: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    try:
        for tensor in tensors.values():
            flat = tensor.detach().reshape(-1)
            probes.setdefault((flat.device, flat.dtype), []).append(flat[:: max(1, len(flat) // _PROBED)])
        return (
            [(name, _Same(tensor), tensor.data_ptr(), tensor._version) for name, tensor in tensors.items()],
            [(tensor.dtype, tensor.shape, tensor.stride()) for tensor in tensors.values()],
            {kind: _bytes(torch.cat(of_kind)).tobytes() for kind, of_kind in probes.items()},
        )
    except (
        NotImplementedError,
        RuntimeError,
        TypeError,
    ):  # not in memory, packed, made for inference
        return None


class _Same:
    """Equal to that of the same tensor, while it lives; holds nothing of it."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = weakref.ref(tensor)

    def __eq__(self, other: object) -> bool:
        tensor = self._tensor()
        return tensor is not None and isinstance(other, _Same) and other._tensor() is tensor

    __hash__ = None  # type: ignore[assignment]


def _tensors(state: Mapping[str, Any]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if isinstance(tensor, Tensor)}


def _bytes(flat: Tensor) -> Any:
    """The bytes of a tensor of one axis, as a NumPy array."""
    return flat.contiguous().cpu().view(torch.uint8).numpy()


def _digest(network: str, state: Mapping[str, Tensor]) -> str:
    tensors = {name.replace("_orig_mod.", ""): tensor for name, tensor in state.items()}  # of compiled parts
    sampled = sum(tensor.numel() for tensor in tensors.values()) > _WHOLE
    sha256 = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        sha256.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        try:
            flat = tensor.detach().reshape(-1)
            if sampled and len(flat) > _SAMPLED:
                steps = torch.arange(_SAMPLED, device=flat.device)
                flat = flat[steps * (len(flat) - 1) // (_SAMPLED - 1)]
            sha256.update(_bytes(flat).data)
        except (NotImplementedError, RuntimeError, TypeError) as error:
            reason = str(error).splitlines()[0]
            raise LvdError(f"the weights of the {network} cannot be read: {name}: {reason}") from None
    return sha256.hexdigest()
