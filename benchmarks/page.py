"""The benchmark of storage: measures what is asked for, and renders one page in Markdown with charts in SVG.

    python benchmarks/page.py                          all sections, in less than 15 minutes
    python benchmarks/page.py --minutes 60             more rounds, and slow works that are left out otherwise
    python benchmarks/page.py --write docs             write docs/benchmarks.md and its charts
    python benchmarks/page.py --only 256MB --only lost one size, and what a flush takes from training

A section that is measured alone has its share of the time; among the others it also has what those before it leave.
Nothing that it prints is typed in.
"""

import argparse
import os
import platform
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import goals
import lost
import sections
import storage
import worlds
from chart import chart
from measure import Sample, Samples
from rivals import WAYS, Reference, missing
from subject import SIZES

MINUTES = 13.0
"""With two for the installation, and for steps that take longer than expected, it is a quarter of an hour."""
_OURS = Reference.name


# -- rendering -------------------------------------------------------------------


def page(found: Mapping[str, object], reasons: Mapping[str, str], minutes: float) -> tuple[str, dict[str, str]]:
    """Return the page, and its charts by their names; `reasons` say why sections were tried and not measured."""
    durable: Mapping[str, str] = found.get("durable", {})
    sizes = {name: found[name] for name in SIZES if name in found}
    parts = [_head(minutes)]
    parts += [f"Not measured in this run: {said}." for said in _left_out(found, reasons)]
    charts = _charts(sizes)
    parts += [_goals(found), *(_picture(name) for name in charts)]
    for size_bytes, count, samples in sizes.values():
        parts.append(f"## {size_bytes / 1e6:,.0f} MB in {count:,} tensors")
        parts += [_limits(samples), _blocked(samples), _saves(samples, durable), _loads(samples), _own(samples)]
        parts += _failures(samples)
    if "ranks" in found:
        parts += ["## One, two and four ranks", _ranks(found["ranks"])]
    if "lost" in found:
        parts += ["## What a flush takes from training", _lost(found["lost"])]
    if durable:
        rows = [[name, said] for name, said in durable.items()]
        parts += [
            "## Which saves are durable",
            "By the trace of the system calls of one synchronous save, up to its return.",
            _table(["", "durable when the save returns"], rows),
        ]
    return "\n\n".join(part for part in parts if part) + "\n", charts


def _left_out(found: Mapping[str, object], reasons: Mapping[str, str]) -> list[str]:
    """Return the sections that were tried and not measured, each with its reason, and then the others."""
    tried = [f"{name}: {' '.join(said.split())}" for name, said in reasons.items()]
    others = ", ".join(name for name in sections.SHARES if name not in found and name not in reasons)
    return tried + ([others] if others else [])


def _head(minutes: float) -> str:
    ways = ", ".join(way.name for way in WAYS if not missing(way))
    absent = ", ".join(way.name for way in WAYS if missing(way)) or "none"
    memory_gb = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9
    import torch

    return f"""# Benchmarks of saves and loads

Written by `python benchmarks/page.py --write docs`; `./with-tox run -e bench` runs it. No number here is typed in by
hand.

- In each round every work is done once, in an order of its own. A result is the median, with its quartiles in brackets.
- *Once*: there was time for one measurement. Of another way it is the first save or load, with what is done only then.
- A work is left out if it would take more time than its section had left. That is computed from a smaller state.
- A ratio compares with the limit of the machine that was measured in the same rounds.
- *Peak* is how much the memory of the process grew during the work. It leaves out other processes of a manager.
- A load finds its files in the page cache.
- *Durable* comes from [a trace of system calls](#which-saves-are-durable). For a save that is not durable there is a
  second row, with the missing syncs added by the benchmark.
- One run of {minutes:.0f} minutes: {len(os.sched_getaffinity(0))} cores, {memory_gb:.0f} GB of memory, Python
  {platform.python_version()}, torch {torch.__version__}. Measured: {ways}. Not installed: {absent}."""


def _goals(found: Mapping[str, object]) -> str:
    """Return our goals with what was measured, what the missed ones come from, and where another way was faster."""
    every = goals.goals(found)
    rows = [[one.said, f"{one.at_most:g} {one.unit}", f"{one.measured:.2f} {one.unit}", _met(one)] for one in every]
    parts = ["## Goals", _table(["", "at most", "measured", "met"], rows)] if rows else []
    lists = {
        "What the missed ones come from:": [
            f"{one.said}: {one.if_missed}" for one in every if not one.is_met and one.if_missed
        ],
        "Where another way was faster, with the syncs that it leaves out:": goals.ahead(found),
    }
    parts += [f"{head}\n\n" + "\n".join(f"- {line}" for line in lines) for head, lines in lists.items() if lines]
    return "\n\n".join(parts)


def _met(goal: goals.Goal) -> str:
    """Return whether a goal is met; a cost below zero is chance, and says that the true one is too small to be seen."""
    if goal.measured < 0:
        return "yes, too little to be measured"
    return "yes" if goal.is_met else "**no**"


def _limits(samples: Samples) -> str:
    names = (storage.COPY, storage.DIRECT, storage.BUFFERED, storage.READ, storage.READ_FRESH)
    return _table(["limit", "ms", "peak, MB"], [[name, _ms(samples[name]), _peak(samples[name])] for name in names])


def _blocked(samples: Samples) -> str:
    return _compared(
        samples,
        "asynchronous save",
        {storage.BLOCKED: "training is blocked", storage.DURABLE: "until written"},
        {storage.COPY: storage.BLOCKED, storage.DIRECT: storage.DURABLE},
    )


def _saves(samples: Samples, durable: Mapping[str, str]) -> str:
    kinds = {storage.SAVE: "", storage.SYNCED: "+ fsync"}
    limits = {storage.DIRECT: None, storage.BUFFERED: None}
    return _compared(samples, "synchronous save", kinds, limits, durable)


def _loads(samples: Samples) -> str:
    kinds = {
        storage.LOADER: "loader alone, into fresh memory",
        storage.LOADER_WARM: "loader alone, into warm memory",
        storage.LOAD: "into model and optimizer",
    }
    table = _compared(samples, "load", kinds, {storage.READ: None, storage.READ_FRESH: storage.LOADER})
    return f"{table}\n\n{_ABOUT_LOADS}"


_ABOUT_LOADS = (
    "A load of forge_ref reads into fresh memory, so that one that fails changes nothing; a raw read goes into warm "
    "memory. So the loader is also compared with a raw read into fresh memory, and also reads into warm memory."
)


def _compared(
    samples: Samples,
    title: str,
    kinds: Mapping[str, str],
    limits: Mapping[str, str | None],
    durable: Mapping[str, str] | None = None,
) -> str:
    """Return a table of the ways that were measured, for these kinds of work, over limits; one may be of one kind."""
    head = [title, "ms", *(f"over {limit}" for limit in limits), "peak, MB"]
    rows = []
    for way in WAYS:
        for kind, said in kinds.items():
            sample = samples.get(f"{way.name} {kind}")
            if sample is None:
                continue
            if sample.failure:
                rows.append([f"{way.name} {said}".strip(), "not measured, see below", *[""] * (len(limits) + 1)])
                rows[-1] += [""] * (durable is not None)
                continue
            over = [_over(sample, samples[limit]) if only in (None, kind) else "" for limit, only in limits.items()]
            row = [f"{way.name} {said}".strip(), _ms(sample), *over, _peak(sample)]
            if durable is not None:
                row.append(_yes_or_no(durable.get(way.name)) if kind == storage.SAVE else "synced here")
            rows.append(row)
    return _table([*head, "durable"] if durable is not None else head, rows)


def _yes_or_no(said: str | None) -> str:
    return "not traced" if said is None or said.startswith("not") else said.split(",")[0].split(":")[0]


def _own(samples: Samples) -> str:
    needed = (f"{_OURS} {storage.SAVE}", storage.WITHOUT_HASHES, storage.FIRST, storage.LATER)
    if any(name not in samples or samples[name].failure for name in needed):
        return ""
    hashes = 1 - samples[storage.WITHOUT_HASHES].median / samples[f"{_OURS} {storage.SAVE}"].median
    share = f"{hashes:.1%} of its time" if hashes > 0 else "too little of its time to be measured"
    lines = [f"What is in a save of {_OURS}: hashes {share}"]
    for name, sample in samples.items():
        if name.startswith(f"{storage.FSYNC} "):
            lines.append(f"the fsync of {name.removeprefix(f'{storage.FSYNC} ')} {sample.median * 1e3:.1f} ms")
    first = _over(samples[storage.FIRST], samples[storage.LATER])
    trained = f"After {storage.TRAINED_S:g} s of training"
    return f"{', '.join(lines)}. {trained} the first asynchronous save blocks {first} times as long as the second."


def _failures(samples: Samples) -> list[str]:
    return [f"Not measured: {name}, {sample.failure}." for name, sample in samples.items() if sample.failure]


def _ranks(samples: Samples) -> str:
    works = ("save", "blocked", "load", "stock save", "stock load", "tiny save", "tiny load")
    head = [
        "",
        *(f"{ranks} rank{'s' if ranks > 1 else ''}, ms" for ranks in worlds.RANKS),
        "2 over 1, ms",
        "4 over 1, ms",
    ]
    rows = []
    for work in works:
        of_ranks = [samples.get(f"{ranks}: {work}", Sample(failure="missing")) for ranks in worlds.RANKS]
        if any(sample.failure for sample in of_ranks):
            continue
        more = [f"{(sample.median - of_ranks[0].median) * 1e3:+.1f}" for sample in of_ranks[1:]]
        rows.append([work if work.startswith("stock") else f"{_OURS} {work}", *map(_ms, of_ranks), *more])
    return (
        "A state of 256 MB, sharded over the ranks, which share the cores and the disk of one machine. *Tiny* is a "
        f"state of a few kilobytes, so that what ranks cost by themselves shows.\n\n{_table(head, rows)}"
    )


def _lost(samples: Samples) -> str:
    if samples[lost.STEPS].failure:
        return f"Not measured: {samples[lost.STEPS].failure}."
    alone, step = samples[lost.STEPS].median, samples[lost.STEP].median
    rows = []
    for way in WAYS:
        steps = samples.get(f"{way.name} steps")
        if steps is None or steps.failure:
            continue
        extra = steps.median - alone
        blocked = samples[f"{way.name} blocked"].median
        rows.append([way.name, f"{blocked * 1e3:.1f}", f"{extra * 1e3:.1f}", f"{(extra + blocked) / step:.1f}"])
    return (
        f"A state of 256 MB is saved while a loop trains a small model on one core, {step * 1e3:.1f} ms a step.\n\n"
        + _table(["", "blocked, ms", "lost beside it, ms", "steps lost per save, both"], rows)
    )


def _charts(sizes: Mapping[str, tuple[int, int, Samples]]) -> dict[str, str]:
    """Return growth with the size of large tensors, and with the number of small ones."""
    large = {name: one for name, one in sizes.items() if name.endswith("B")}
    small = {name: one for name, one in sizes.items() if name.endswith("k")}
    kinds = {
        "save": [(name, name) for name in (storage.DIRECT, storage.BUFFERED)] + _lines(storage.SAVE),
        "blocked": [(storage.COPY, storage.COPY), *_lines(storage.BLOCKED)],
        "load": [(storage.READ, storage.READ), *_lines(storage.LOAD)],
    }
    charts = {}
    for group, x, of in ((large, "MB", 0), (small, "tensors of 4 kB", 1)):
        for kind, lines in kinds.items() if len(group) > 1 else ():
            points = {said: _points(group, name, of) for name, said in lines}
            points = {said: found for said, found in points.items() if len(found) > 1}
            name = f"benchmarks-{kind}-{'large' if of == 0 else 'small'}.svg"
            charts[name] = chart(f"{kind.capitalize()}, by {x}", x, "ms", points)
    return charts


def _lines(kind: str) -> list[tuple[str, str]]:
    return [(f"{way.name} {kind}", way.name) for way in WAYS]


def _points(group: Mapping[str, tuple[int, int, Samples]], name: str, of: int) -> list[tuple[float, float]]:
    return [
        (one[0] / 1e6 if of == 0 else one[1], one[2][name].median * 1e3)
        for one in group.values()
        if name in one[2] and not one[2][name].failure
    ]


def _picture(name: str) -> str:
    return f"![{name.removesuffix('.svg').replace('-', ' ')}]({name})"


def _ms(sample: Sample) -> str:
    if sample.failure:
        return "not measured, see below"
    low, high = sample.spread
    if len(sample.seconds) == 1:
        return f"{sample.median * 1e3:.1f} (once)"
    return f"{sample.median * 1e3:.1f} ({low * 1e3:.1f} to {high * 1e3:.1f})"


def _over(sample: Sample, limit: Sample) -> str:
    return "" if sample.failure or limit.failure else f"{sample.median / limit.median:.2f}"


def _peak(sample: Sample) -> str:
    return f"{sample.peak_bytes / 1e6:.0f}"


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _minutes(text: str) -> float:
    minutes = float(text)
    if not 0 < minutes < 24 * 60:
        raise argparse.ArgumentTypeError(f"{text} is not a number of minutes below a day")
    return minutes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=sections.SHARES, help="measure this section; repeatable")
    parser.add_argument("--minutes", type=_minutes, default=MINUTES, help=f"how long all sections take ({MINUTES:g})")
    parser.add_argument("--write", type=Path, metavar="FOLDER", help="write benchmarks.md and its charts into it")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # so that the process of a section is stopped too
    begun = time.monotonic()
    found = sections.measure(sections.with_smaller(options.only or [*sections.SHARES]), options.minutes)
    text, charts = page(found.results, found.reasons, (time.monotonic() - begun) / 60)
    print(text)
    if found.is_interrupted:
        sys.exit("interrupted; nothing was written, and above is what was measured until then")
    if options.write is not None:
        (options.write / "benchmarks.md").write_text(text)
        for name, picture in charts.items():
            (options.write / name).write_text(picture)
    if found.failures:
        sys.exit(f"sections that failed: {found.failures}; the page says why")


if __name__ == "__main__":
    main()
