"""Whether a run is to be believed, in words: by its weights, its probe and a reference."""

from collections.abc import Sequence

from flows.probe import LEAST_WALKERS
from runs.page import Verdict
from runs.run_files import RunFiles

MOST_ERRORS = 3.0
"""Combined standard errors by which a population may differ from the reference's."""

_HEADLINES = {
    "bad": "Not to be trusted.",
    "open": "Not known whether to be trusted: not everything was looked at.",
    "good": "To be trusted, as far as weights and probe can tell.",
}


def verdicts(run: RunFiles) -> list[Verdict]:
    """Return what is known of a run: its probe first, because weights miss what it finds."""
    found = [_outdated(run), _probe(run), _weights(run), _reference(run)]
    return [verdict for verdict in found if verdict is not None]


def headline(runs: Sequence[RunFiles]) -> Verdict:
    """Return the verdict on top of a page: the worst of any run, with its reasons."""
    found = {run.folder.path.name: verdicts(run) for run in runs}
    all_of_them = [v for group in found.values() for v in group]
    level = next(level for level in ("bad", "open", "good") if _has(all_of_them, level))
    words = _HEADLINES[level]
    if level != "good":
        for name, group in found.items():
            reasons = " ".join(v.text for v in group if v.level == level)
            named = f"{name}: " if len(found) > 1 and reasons else ""
            words += f" {named}{reasons}" if reasons else ""
    return Verdict(level, words)


def _has(found: Sequence[Verdict], level: str) -> bool:
    return any(v.level == level for v in found)


def _outdated(run: RunFiles) -> Verdict | None:
    last = max((row.get("step", 0) for row in run.rows or ()), default=0)
    told = {"metrics.json": run.metrics, "probe.json": run.probe}
    steps = {name: found.get("step") for name, found in told.items() if found is not None}
    older = [f"{name} (step {n})" for name, n in steps.items() if n is not None and n < last]
    if not older:
        return None
    return Verdict(
        "open",
        f"The flow was trained further, up to step {last}, after {' and '.join(older)} had been "
        "written: evaluate and probe it again.",
    )


def _probe(run: RunFiles) -> Verdict:
    if run.probe is None:
        return Verdict(
            "open",
            "Not probed: weights know nothing of a region that no sample has seen. "
            f"`python -m runs.probe run={run.folder.path}` looks for one.",
        )
    words = str(run.probe["verdict"])
    if run.probe["found"]:
        found = words.removeprefix("Not to be trusted: ")
        return Verdict("bad", f"The probe found what the flow has missed. {found}")
    conclusive = run.probe["effective_walkers"] >= LEAST_WALKERS
    return Verdict("good" if conclusive else "open", f"Probe: {words}")


def _weights(run: RunFiles) -> Verdict:
    if run.metrics is None or "verdict" not in run.metrics:
        lacks = "Not evaluated" if run.metrics is None else "Evaluated by an earlier version"
        return Verdict(
            "open",
            f"{lacks}: nothing is known of the weights. "
            f"`python -m runs.evaluate run={run.folder.path}` weighs them.",
        )
    words = run.metrics["verdict"]
    if run.metrics["reliable"]:
        return Verdict("good", f"The weights carry averages: {words}.")
    return Verdict("bad", f"The weights carry no averages: {words}.")


def _reference(run: RunFiles) -> Verdict | None:
    compared = (run.metrics or {}).get("reference", {}).get("populations", {})
    if not compared:
        return None
    off = {
        name: p["z_score"] for name, p in compared.items() if not abs(p["z_score"]) <= MOST_ERRORS
    }
    if off:
        each = ", ".join(f"{name} by {z:+.1f}" for name, z in off.items())
        return Verdict(
            "bad", f"Populations differ from the reference's, in combined standard errors: {each}."
        )
    return Verdict(
        "good",
        f"Populations agree with the reference's within {MOST_ERRORS:g} combined standard errors: "
        f"{', '.join(compared)}.",
    )
