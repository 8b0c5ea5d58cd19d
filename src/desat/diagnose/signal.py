"""The signal on its way forward: how it grows or fades over the depth of the network, in decibels.

Looked at are the hidden layers between the last normalization, which makes any signal one again, and the head, whose
scale is that of the targets.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from desat.diagnose.link_budget import LOSS_SUFFIX, Link, Share, share_of
from desat.record.gains import RMS_FLOOR
from desat.record.reader import Record
from desat.record.rows import Site

Measure = Literal["size", "variation"]


@dataclass(frozen=True)
class SignalPath:
    """The links from the first layer (not a link itself) to the last hidden one, at the sampled step `step`."""

    step: int
    first_site: str
    links: tuple[Link, ...]

    @property
    def total_db(self) -> float:
        """Change of the signal over the path, dB; what pooling averages away is left out."""
        return float(sum(link.gain_db for link in self.links if not _averages(link)))

    @property
    def layers(self) -> int:
        """Layers with weights on the path, without the first."""
        return sum(link.share == "weight" for link in self.links)

    def by_share(self, share: Share) -> float:
        """What the sites of one share make of it, dB."""
        return float(sum(link.gain_db for link in self.links if link.share == share))


def signal_paths(record: Record, measure: Measure) -> tuple[SignalPath, ...]:
    """The path of every sampled step at which all its outputs were finite; none where no hidden layer has a weight.

    measure: `size` is the rms of an output, `variation` its standard deviation, in which a constant does not count.
    """
    rms, mean = record.grid("output", "rms"), record.grid("output", "mean")
    rows = _hidden(rms.sites)
    if not rows:
        return ()
    sites = [rms.sites[row] for row in rows]
    bad = record.grid("output", "nonfinite").values[rows] > 0.0
    values = rms.values[rows]
    if measure == "variation":
        with np.errstate(over="ignore", invalid="ignore"):
            values = np.sqrt(np.maximum(values**2 - mean.values[rows] ** 2, 0.0))
    broken = (bad | np.isinf(values)).any(axis=0)
    paths = (_path(sites, int(rms.steps[at]), values[:, at]) for at in np.flatnonzero(~broken))
    return tuple(path for path in paths if path is not None)


def _hidden(sites: tuple[Site, ...]) -> list[int]:
    chain = [
        index
        for index, site in enumerate(sites)
        if site.kind in ("module", "nonlinearity") and not site.operation.endswith(LOSS_SUFFIX)
    ]
    shares = [share_of(sites[index]) for index in chain]
    heads = [place for place, share in enumerate(shares) if share == "weight"]
    if len(heads) < 3:
        return []
    hidden = chain[: heads[-1]]
    starts = [place for place in range(heads[-1]) if shares[place] == "normalization"]
    drawn = [place for place in heads if not _is_embedding(sites[chain[place]])]
    first = starts[-1] if starts else drawn[0] if drawn else heads[-1]
    hidden = hidden[first:]
    return hidden if any(share == "weight" for share in shares[first + 1 : heads[-1]]) else []


def _path(sites: list[Site], step: int, values: NDArray[np.float64]) -> SignalPath | None:
    known = [(site, value) for site, value in zip(sites, values, strict=True) if not np.isnan(value)]
    if len(known) < 2:
        return None
    levels = 20.0 * np.log10(np.maximum([value for _, value in known], RMS_FLOOR))
    links = tuple(
        Link(site.name, site.operation, share_of(site), float(levels[place + 1] - levels[place]))
        for place, (site, _) in enumerate(known[1:])
    )
    return SignalPath(step, known[0][0].name, links)


def _averages(link: Link) -> bool:
    return "pool" in link.operation.lower() and link.gain_db < 0.0


def _is_embedding(site: Site) -> bool:
    return "embedding" in site.operation.lower()
