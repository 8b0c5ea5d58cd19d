"""Shipment: what a sampled step measured goes to the host in one copy for each device."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from desat.record.rows import Row
from desat.record.writer import RowMaker


class Parcel(NamedTuple):
    """Tensors of one step that own their memory, and how to make record rows of the arrays that arrive for them."""

    tensors: list[Tensor]
    rows: Callable[[list[NDArray[Any]]], Iterable[Row]]


def ship(parcels: Sequence[Parcel]) -> RowMaker:
    """Start the one copy; the function returned waits for it, in the writer's thread, and gives the rows."""
    arrived = _start_copies([tensor.detach() for parcel in parcels for tensor in parcel.tensors])

    def rows() -> list[Row]:
        arrays, start, made = arrived(), 0, []
        for parcel in parcels:
            made += parcel.rows(arrays[start : start + len(parcel.tensors)])
            start += len(parcel.tensors)
        return made

    return rows


def _start_copies(tensors: list[Tensor]) -> Callable[[], list[NDArray[Any]]]:
    abroad: dict[torch.device, list[int]] = defaultdict(list)
    for index, tensor in enumerate(tensors):
        if tensor.device.type != "cpu":
            abroad[tensor.device].append(index)
    copies = [(places, _to_host([tensors[place] for place in places])) for places in abroad.values()]

    def arrived() -> list[NDArray[Any]]:
        arrays: list[Any] = [tensor.numpy() if tensor.device.type == "cpu" else None for tensor in tensors]
        for places, copy in copies:
            for place, array in zip(places, copy(), strict=True):
                arrays[place] = array
        return arrays

    return arrived


def _to_host(tensors: list[Tensor]) -> Callable[[], list[NDArray[Any]]]:
    """One copy of all tensors of one device, as bytes side by side."""
    flat = torch.cat([tensor.reshape(-1).view(torch.uint8) for tensor in tensors])
    on_cuda = flat.device.type == "cuda"
    host = torch.empty(flat.shape, dtype=torch.uint8, pin_memory=on_cuda)
    host.copy_(flat, non_blocking=on_cuda)
    event = torch.cuda.Event() if on_cuda else None
    if event is not None:
        event.record()

    def arrived() -> list[NDArray[Any]]:
        if event is not None:
            event.synchronize()
        octets, start, arrays = host.numpy(), 0, []
        for tensor in tensors:
            end = start + tensor.numel() * tensor.element_size()
            kind = np.dtype(str(tensor.dtype).removeprefix("torch."))
            arrays.append(octets[start:end].view(kind).reshape(tensor.shape))
            start = end
        return arrays

    return arrived
