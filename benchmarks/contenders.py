"""Who watches: desat and the tools one could take instead, each attached as its documentation says."""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.models import Workload

Step = Callable[[], None]


@contextlib.contextmanager
def plain(work: Workload, folder: Path) -> Iterator[Step]:
    yield lambda: work.step()


@contextlib.contextmanager
def desat_every_step(work: Workload, folder: Path) -> Iterator[Step]:
    import desat

    with desat.watch(work.model, work.optimizer, every=1, run_dir=folder / "run"):
        yield lambda: work.step()


@contextlib.contextmanager
def wandb_watch(work: Workload, folder: Path) -> Iterator[Step]:
    os.environ["WANDB_SILENT"] = "true"
    import wandb

    with wandb.init(mode="offline", dir=str(folder), project="overhead") as run:
        run.watch(work.model, log="all", log_freq=1)

        def step() -> None:
            run.log({"loss": work.step().item()})

        yield step
        run.unwatch(work.model)


@contextlib.contextmanager
def tensorboard_histograms(work: Workload, folder: Path) -> Iterator[Step]:
    from torch.utils.tensorboard import SummaryWriter

    outputs: dict[str, Any] = {}
    leaves = [(name, module) for name, module in work.model.named_modules() if not list(module.children())]

    def keep(name: str) -> Callable[..., None]:
        return lambda module, args, output: outputs.__setitem__(name, output)

    handles = [module.register_forward_hook(keep(name)) for name, module in leaves]
    number = 0
    with SummaryWriter(str(folder)) as writer:

        def step() -> None:
            nonlocal number
            writer.add_scalar("loss", work.step().item(), number)
            for name, output in outputs.items():
                writer.add_histogram(f"output/{name}", output.detach(), number)
            for name, parameter in work.model.named_parameters():
                writer.add_histogram(f"parameter/{name}", parameter.detach(), number)
                if parameter.grad is not None:
                    writer.add_histogram(f"gradient/{name}", parameter.grad, number)
            number += 1

        yield step
    for handle in handles:
        handle.remove()


@contextlib.contextmanager
def torchmortem(work: Workload, folder: Path) -> Iterator[Step]:
    from torchmortem import Autopsy

    with Autopsy(work.model, optimizer=work.optimizer) as autopsy:

        def step() -> None:
            autopsy.step(loss=work.step().item())

        yield step


@contextlib.contextmanager
def delve(work: Workload, folder: Path) -> Iterator[Step]:
    from delve import SaturationTracker

    device = str(next(work.model.parameters()).device)
    tracker = SaturationTracker(str(folder / "delve"), save_to="csv", modules=work.model, device=device)

    def step() -> None:
        work.step()
        tracker.add_saturations()

    yield step
    tracker.close()


@contextlib.contextmanager
def cockpit(work: Workload, folder: Path) -> Iterator[Step]:
    import cockpit as package  # its own import is what is tried: it needs modules that Python no longer has

    raise RuntimeError(f"cockpit {package.__name__} needs a BackPACK-extended loss, which these workloads have not")
    yield  # pyright: ignore[reportUnreachable]


CONTENDERS: dict[str, Callable[[Workload, Path], contextlib.AbstractContextManager[Step]]] = {
    "plain": plain,
    "desat (every step)": desat_every_step,
    "wandb.watch (all, every step)": wandb_watch,
    "TensorBoard histograms (every step)": tensorboard_histograms,
    "torchmortem": torchmortem,
    "delve": delve,
    "cockpit": cockpit,
}
