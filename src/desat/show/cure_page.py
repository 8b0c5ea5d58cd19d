"""The page of a search for a cure: what helps and the proof of it, what to write, and the losses of the trials."""

from pathlib import Path
from typing import Any

from desat.show.cure import gain, interval, kinds_of_changes
from desat.show.curves import curves_figure
from desat.show.page import render, with_code, write_page
from desat.show.words import count, number, plain

CAPTION = (
    "The baseline and the best trials. A thick line is the mean over the seeds that came as far, lightly smoothed; it "
    "breaks off where one of them has no finite loss. The band goes from the lowest seed to the highest; the faint "
    "lines are the losses as they were. Dotted lines are trials that were not accepted; a circle marks where one was "
    "stopped because others did better."
)

ARROW = "\u2060→\u2060"
"""Between two values; the line does not break there."""


def write_cure(document: dict[str, Any], path: Path, option: str = "-o") -> Path:
    """Write the page of a search to `path`, whole or not at all. Returns the path.

    document: as desat.record.kept_cure.read_kept returns it. Raises DesatError where it cannot be written, which names
    the option that says where.
    """
    return write_page(path, render_cure(document), option)


def render_cure(document: dict[str, Any]) -> str:
    """The page as text."""
    chosen = document["chosen"]
    best = next((trial for trial in document["trials"] if trial["apply"] == chosen), None)
    figure = curves_figure(document)
    return render(
        "cure.html.j2",
        {} if figure is None else {"curves": figure},
        found=document,
        baseline=document["baseline"],
        best=best,
        verdict=_verdict(document, best),
        sentences=[with_code(plain(sentence)) for sentence in _sentences(document, best)],
        findings=[finding for finding in document["baseline"]["findings"] if finding["severity"] != "note"],
        measure=next((trial["measure"] for trial in document["trials"] if trial["measure"]), "loss"),
        interval=interval,
        diff=_lines(document["diff"] or ""),
        changes=kinds_of_changes(document["applied"]),
        caption=CAPTION if figure is not None else "",
    )


def _verdict(document: dict[str, Any], best: dict[str, Any] | None) -> str:
    """What has come out, in one sentence."""
    if best is not None:
        brought = plain(gain(best, document["baseline"])).replace(" -> ", ARROW)
        return f"What helps: {plain(' with '.join(best['apply']))}, {brought}."
    if document["trials"]:
        return f"No remedy helped, of {count(len(document['trials']), 'candidate')}."
    if document["baseline"]["verdict"] == "healthy":
        return "The network is healthy: nothing needs a cure."
    return "No remedy was tried to its end."


def _sentences(document: dict[str, Any], best: dict[str, Any] | None) -> list[str]:
    """What is to be known beside it."""
    told = []
    if document["interrupted"]:
        told.append("The search was interrupted: this is what was known by then.")
    if best is None:
        return told
    if best["effect"] is not None:
        proof = f", 95 % interval {interval(best)}" if best["interval"] is not None else ""
        told.append(f"Better by {number(best['effect'])} than without it{proof}.")
    if best["findings_gone"]:
        told.append(f"Gone with it: {', '.join(best['findings_gone'])}.")
    options = " ".join(f"--apply {remedy}" for remedy in best["apply"])
    told.append(f"Try it: `desat run {options} {document['script']}`")
    return told


def _lines(diff: str) -> list[tuple[str, str]]:
    """The lines of a diff, with what each does, as the style sheet calls it. Tabs are code and stay."""
    kinds = {"+": "added", "-": "removed", "@": "place"}
    lines = [line.rstrip("\r") for line in diff.removesuffix("\n").split("\n")] if diff else []
    return [("\t".join(map(plain, line.split("\t"))), kinds.get(line[:1], "kept")) for line in lines]
