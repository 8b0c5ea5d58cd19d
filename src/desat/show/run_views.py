"""What is shown of one run, piece by piece, each made when it is asked for: the report has all, the dashboard some."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from markupsafe import Markup

from desat.diagnose.finding import Diagnosis
from desat.diagnose.health import WEIGHTS, health
from desat.diagnose.link_budget import LinkBudget
from desat.diagnose.rules import RULES
from desat.record.reader import Record
from desat.record.rows import Site
from desat.show import words
from desat.show.comparison import comparison_table
from desat.show.figures import budget_figure, loss_figure
from desat.show.heat_maps import HEAT_MAPS, heat_map
from desat.show.layers import measure_layers, sickest
from desat.show.page import environment, with_code
from desat.show.plot import Figure
from desat.show.site_figures import site_figures
from desat.show.summary import summarize

FACTS = ("script", "status", "started", "desat", "torch", "python", "device", "budget", "every", "applied", "dropped")
"""What is known of a run as a whole and told at the foot of the page, in this order."""

LAYERS_SHOWN = 20
"""Layers below full health that are listed at once; of more the sickest, in order of execution."""

DETAIL_COLUMNS = 24_000
"""Steps of the sites' details, of all sites together: what keeps a page of hundreds of sites below 6 MB."""

FEWEST_COLUMNS, MOST_COLUMNS = 40, 240
"""Steps of one site's details."""

KINDS = {"nonlinearity": "nonlinearities", "module": "modules", "parameter": "parameters"}
"""Kinds of sites by which they are offered for choice; others are called by their kind."""


class RunViews:
    """The pieces of one run.

    `get` has figures, and the HTML of single sites, by name; `parts` the HTML of the page around them. compared: runs
    that stand beside it. Numbers and text of the record are untrusted: all that is HTML here is escaped.
    """

    def __init__(
        self,
        record: Record,
        diagnosis: Diagnosis,
        link_budget: LinkBudget | None,
        compared: Sequence[tuple[Record, Diagnosis]] = (),
    ) -> None:
        self.record = record
        self.diagnosis = diagnosis
        self.link_budget = link_budget if link_budget is not None and link_budget.links else None
        self.compared = compared

    @cached_property
    def sites(self) -> dict[int, Site]:
        return {site.id: site for site in self.record.sites()}

    @cached_property
    def numbers(self) -> dict[str, int]:
        """The number of a site by its name; where a parameter has a module's name, that of the module."""
        ranked = sorted(self.sites.values(), key=lambda site: site.kind != "parameter")
        return {site.name: site.id for site in reversed(ranked)}

    def all(self) -> dict[str, Figure | str]:
        """Every piece that `get` has."""
        found: dict[str, Figure | str] = {"loss": self._loss()}
        if self.link_budget is not None:
            found["budget"] = budget_figure(self.link_budget, self.numbers)
        for kind in HEAT_MAPS:
            figure = heat_map(self.record, kind)
            if figure is not None:
                found[f"heat/{kind.name}"] = figure
        for number in self.sites:
            found |= self.site(number)
        return found

    def get(self, name: str) -> Figure | str:
        """One piece: `loss`, `budget`, `heat/gradient`, `site/12` (HTML), `site/12/units` and so on.

        Raises KeyError where there is none of that name.
        """
        head, _, rest = name.partition("/")
        if name == "loss":
            return self._loss()
        if name == "budget" and self.link_budget is not None:
            return budget_figure(self.link_budget, self.numbers)
        if head == "heat":
            figure = next((heat_map(self.record, kind) for kind in HEAT_MAPS if kind.name == rest), None)
            if figure is not None:
                return figure
        if head == "site" and rest.partition("/")[0].isdecimal():
            return self.site(int(rest.partition("/")[0]))[name]
        raise KeyError(name)

    def _loss(self) -> Figure:
        runs = [(self.record.name, self.record), *((other.name, other) for other, _ in self.compared)]
        return loss_figure(runs, self.diagnosis.findings)

    def site(self, number: int) -> dict[str, Figure | str]:
        """The pieces of one site, its HTML first. Raises KeyError where there is no such site."""
        site = self.sites[number]
        columns = int(np.clip(DETAIL_COLUMNS // len(self.sites), FEWEST_COLUMNS, MOST_COLUMNS))
        details = list(site_figures(self.record, site, columns))
        found = [finding for finding in self.diagnosis.findings if site.name in finding.sites]
        page = environment().get_template("site.html.j2").render(site=site, details=details, findings=found)
        return {f"site/{number}": page} | {f"site/{number}/{detail.name}": detail.figure for detail in details}

    def parts(self) -> dict[str, Markup]:
        """The HTML of the page by the names of its parts, each of which can be replaced while a run goes on."""
        template = environment().get_template("run.html.j2")
        context = template.new_context(self._words())
        return {name: Markup("".join(block(context))) for name, block in template.blocks.items()}

    def page(self) -> Markup:
        """All parts in place, with places for the figures."""
        return Markup(environment().get_template("run.html.j2").render(self._words()))

    def _words(self) -> dict[str, Any]:
        record, diagnosis = self.record, self.diagnosis
        layers = measure_layers(record, diagnosis)
        listed = sickest(layers, LAYERS_SHOWN)
        information = record.information
        return {
            "diagnosis": diagnosis,
            "verdict": words.verdict(diagnosis),
            "health": words.health(health(diagnosis)),
            "summary": [with_code(sentence) for sentence in summarize(record, diagnosis)],
            "listed_layers": listed,
            "other_layers": [layer for layer in layers if layer not in listed],
            "weights": WEIGHTS,
            "script": words.script_of(record),
            "budget": self.link_budget,
            "heat_maps": [kind for kind in HEAT_MAPS if any(site.kind in kind.kinds for site in self.sites.values())],
            "table": list(_site_table(record)),
            "choices": self._choices(),
            "comparison": comparison_table([(record, diagnosis), *self.compared]) if self.compared else [],
            "facts": _facts(information),
            "rules": RULES,
            "operations": words.operations(record),
            "numbers": self.numbers,
            "first_site": self._first_site(),
        }

    def _choices(self) -> dict[str, list[Site]]:
        """The sites by their kind, in order of execution."""
        kinds: dict[str, list[Site]] = {name: [] for name in KINDS.values()}
        for site in self.sites.values():
            kinds.setdefault(KINDS.get(site.kind, site.kind), []).append(site)
        return {kind: sites for kind, sites in kinds.items() if sites}

    def _first_site(self) -> int | None:
        """The one that is shown at first: that of the gravest finding, or the first nonlinearity."""
        named = [self.numbers[found.site] for found in self.diagnosis.findings if found.site in self.numbers]
        nonlinear = [site.id for site in self.sites.values() if site.kind == "nonlinearity"]
        return next(iter([*named, *nonlinear, *self.sites]), None)


def _site_table(record: Record) -> Iterator[dict[str, Any]]:
    """The last sample of each site, for those who want the numbers behind the pictures."""
    inputs, outputs = record.last_sample("input"), record.last_sample("output")
    gradients = record.last_sample("gradient")
    for site in record.sites():
        if site.kind == "parameter":
            continue
        taken, given, gradient = inputs.get(site.id), outputs.get(site.id), gradients.get(site.id)
        saturated = None if taken is None else (taken.saturated_low or 0.0) + (taken.saturated_high or 0.0)
        yield {
            "site": site,
            "input": taken.rms if taken else None,
            "saturated": saturated,
            "gain": taken.gain if taken else None,
            "dead": _dead_share(record, site) if taken else None,
            "output": given.rms if given else None,
            "gradient": gradient.rms if gradient else None,
        }


def _dead_share(record: Record, site: Site) -> float | None:
    """Share of the units that were saturated on every sample of every sampled step."""
    _, flags = record.saturated_units(site)
    return float(np.logical_and.reduce(flags).mean()) if flags.size else None


def _facts(information: dict[str, Any]) -> list[tuple[str, str]]:
    told = [(name, information[name]) for name in FACTS if information.get(name) not in (None, [], "")]
    return [
        (name, "; ".join(map(words.plain, value)) if isinstance(value, list) else words.plain(value))
        for name, value in told
    ]
