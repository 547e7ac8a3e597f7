"""How results are told: a line each as they come, a table in Markdown, every measurement in JSON, a plot."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from benchmarks.brokers import outcomes, plot
from benchmarks.brokers.contenders import COMPILED, MOSQUITTO, NAMES, OURS
from benchmarks.brokers.outcomes import Line, Outcome

RESULTS: Final = Path(__file__).resolve().parents[1] / "results"


def one_line(outcome: Outcome) -> str:
    """A measurement as it comes."""
    figures = ", ".join(f"{name} {_number(value)}" for name, value in outcome.figures.items())
    value = f"{_number(outcome.value)} {outcome.unit}"
    return f"{outcome.scenario:40} {outcome.broker:10} {value:28} {figures}, load {outcome.load_average:.1f}"


def table(lines: Sequence[Line]) -> str:
    """Medians, and both of ours in Mosquitto's with the smallest and the largest ratio."""
    head = ["", "unit", *NAMES, "ours / Mosquitto", "compiled / Mosquitto", "bar", "", "load"]
    rows = [head, ["---"] * len(head), *(_row(line) for line in lines)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _row(line: Line) -> list[str]:
    medians = [_number(median) if (median := line.median(name)) is not None else "-" for name in NAMES]
    told = [_ratio(line, OURS), _ratio(line, COMPILED)]
    verdict = {None: "", True: "met", False: "MISSED"}[line.is_met]
    return [line.scenario, line.unit, *medians, *told, str(line.bar or ""), verdict, f"{line.load_average:.1f}"]


def _ratio(line: Line, broker: str) -> str:
    ratios = line.ratios(broker)
    return f"**{line.ratio(broker):.2f}** ({min(ratios):.2f} to {max(ratios):.2f})" if ratios else ""


def details(lines: Sequence[Line]) -> str:
    """What is told beside each value, for each broker."""
    found = []
    for line in lines:
        names = list(dict.fromkeys(name for figures in line.figures.values() for name in figures))
        rows = [["", *names], ["---"] * (1 + len(names))]
        rows += [[broker, *(_figure(figures, name) for name in names)] for broker, figures in line.figures.items()]
        found.append(f"**{line.scenario}**\n\n" + "\n".join(f"| {' | '.join(row)} |" for row in rows))
    return "\n\n".join(found)


def _figure(figures: Mapping[str, float], name: str) -> str:
    return _number(figures[name]) if name in figures else "-"


def _number(value: float) -> str:
    if value >= 1000:
        return f"{value:,.0f}"
    if value == int(value):
        return f"{value:.0f}"
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def write(found: Sequence[Outcome], lines: Sequence[Line], into: Path) -> None:
    """broker.md, broker.json and broker.svg."""
    into.mkdir(parents=True, exist_ok=True)
    machine = outcomes.machine()
    facts = "\n".join(f"- {name}: {value}" for name, value in machine.items())
    text = f"# Brokers side by side\n\n`./dev bench broker`\n\n{facts}\n\n{table(lines)}\n\n{details(lines)}\n"
    (into / "broker.md").write_text(text, encoding="utf-8")
    measured = {"machine": machine, "outcomes": outcomes.as_json(found)}
    (into / "broker.json").write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    by_message = [line for line in lines if line.unit.startswith("us") and MOSQUITTO in line.values]
    if by_message:
        (into / "broker.svg").write_text(plot.bars(by_message), encoding="utf-8")
