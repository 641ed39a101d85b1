"""The results as tables and JSON. Nothing here runs a system."""

from benchmarks.allreduce import equality

PLACES = {  # as in the tables
    "100mbit": "100 Mb/s",
    "1gbit": "1 Gb/s",
    "none": "no limit",
}


def title(place: str) -> str:
    """The column of a place such as "1gbit" or "1gbit slow"."""
    link, _, slow = place.partition(" ")
    return PLACES.get(link, link) + (", one worker slow" if slow else "")


def table(places: dict[str, list[dict]]) -> str:
    """One network's table, in Markdown.

    Args:
      places: place -> `report.result` of each system there. A system that was not measured at a
        place has no cell.
    """
    places = {place: places[place] for place in sorted(places, key=_order)}
    names = list(dict.fromkeys(r["system"] for results in places.values() for r in results))
    lines = [
        f"| system | {' | '.join(title(place) for place in places)} |",
        f"|---|{'---:|' * len(places)}",
    ]
    for name in names:
        cells = [_cell(name, results) for results in places.values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _order(place: str) -> tuple[bool, int]:
    link, _, slow = place.partition(" ")
    known = list(PLACES)
    return bool(slow), known.index(link) if link in known else len(known)


def _cell(name: str, results: list[dict]) -> str:
    for r in results:
        if r["system"] == name:
            if "step" not in r:
                return f"failed: {(r['error'] or '').replace('|', '/')}"
            low, middle, high = (_ms(r[key]) for key in ("step_low", "step", "step_high"))
            return f"{middle} ({low} to {high})"
    return "—"


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:,.0f}" if seconds >= 0.02 else f"{1e3 * seconds:.1f}"


def equality_table(rows: list[dict]) -> str:
    """The comparison of weights, in Markdown."""
    lines = ["| network | system | largest relative difference | |", "|---|---|---:|---|"]
    for r in rows:
        if "error" in r:
            cells = f"failed: {r['error'].replace('|', '/')} | MISSED"
        else:
            met = r["difference"] <= equality.TOLERANCE
            cells = f"{r['difference']:.1e} | {'equal' if met else 'DIFFERENT'}"
        lines.append(f"| {r['network']} | {r['system']} | {cells} |")
    return "\n".join(lines)
