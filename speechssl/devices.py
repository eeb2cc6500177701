"""Several devices that compute side by side: what users call them, a copy of a module on each, and results in order.

A thread serves each device, and not a process: threads share features, labels and audio without sending them, and torch
lets go of the interpreter while kernels run or are waited for; batches need only be large beside what launches them.
"""

import copy
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from torch import nn

from speechssl.errors import ConfigError

T = TypeVar("T")
Module = TypeVar("Module", bound=nn.Module)
Devices = tuple[torch.device, ...]
"""The first is where training happens; one may be named twice."""
CPU = torch.device("cpu")
AHEAD = 2
"""Results per device that are computed before they are asked for."""


def resolve_devices(names: str) -> Devices:
    """The devices of 'cpu', 'cuda' (all that are visible), 'cuda:1', or several such as 'cuda:0,cuda:1'.

    Raises:
        ConfigError: one that is unknown, or not there.
    """
    return tuple(device for name in names.split(",") for device in _resolve(name.strip()))


def _resolve(name: str) -> list[torch.device]:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise _refused(name, "torch knows none of this name") from error
    if device.type == "cpu":
        return [CPU]
    known = torch.accelerator.current_accelerator()
    count = torch.accelerator.device_count() if known is not None and known.type == device.type else 0
    if device.index is None and count > 0:
        return [torch.device(device.type, index) for index in range(count)]
    if device.index is None or device.index >= count:
        raise _refused(name, f"torch sees {count} of its kind")
    return [device]


def _refused(name: str, reason: str) -> ConfigError:
    return ConfigError(
        f"The device '{name}' can't be used ({reason}): choose cpu, cuda for every GPU that is visible, or several as "
        "in cuda:0,cuda:1."
    )


def share(names: str, processes: int) -> list[str]:
    """The devices of each of several processes: all are in use, and shared only where there are more processes."""
    devices = resolve_devices(names)
    parts = deal(devices, processes)
    return [",".join(map(str, part or [devices[k % len(devices)]])) for k, part in enumerate(parts)]


def deal(items: Sequence[T], count: int) -> list[Sequence[T]]:
    """Item k goes into part k modulo `count`; `in_turn` brings what is made of them back in order."""
    return [items[place::count] for place in range(count)]


def replicate(module: Module, devices: Sequence[torch.device]) -> list[Module]:
    """The module for the first device, and a copy of it for each of the others.

    With fewer than two devices, the module alone where it is; otherwise it is copied to the first one too if it is
    elsewhere.
    """
    if len(devices) < 2:
        return [module]
    where = next((tensor.device for tensor in (*module.parameters(), *module.buffers())), devices[0])
    first = module if where == devices[0] else copy.deepcopy(module).to(devices[0])
    return [first, *(copy.deepcopy(module).to(device) for device in devices[1:])]


def in_turn(sources: Sequence[Generator[T, None, None]]) -> Generator[T, None, None]:
    """Yields what sources make, one of each in turn until one ends, each source being advanced by a thread of its own.

    One source alone is advanced by the caller. An error comes out in its turn.

    Args:
        sources: as many items in each, but for one more in the first ones; closed at the end.
    """
    if len(sources) < 2:
        for source in sources:
            yield from source
        return
    # Libraries of products take as many threads as there are cores, unless each thread that calls them says otherwise.
    count = torch.get_num_threads()
    threads = [
        ThreadPoolExecutor(1, f"speechssl-device-{place}", torch.set_num_threads, (count,))
        for place in range(len(sources))
    ]
    end: Any = object()
    waiting: deque[tuple[int, Future[T]]] = deque()

    def ask(place: int) -> None:
        waiting.append((place, threads[place].submit(next, sources[place], end)))

    try:
        for place in (*range(len(sources)),) * AHEAD:
            ask(place)
        while (item := waiting[0][1].result()) is not end:
            ask(waiting.popleft()[0])
            yield item
    finally:
        for thread in threads:
            thread.shutdown(cancel_futures=True)
        for source in sources:
            source.close()
