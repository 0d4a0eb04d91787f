"""Run the scripts of findings: each has to show its failure, or its page is out of date.

    python docs/findings/check.py lightning-last-link orbax-brackets

A script exits with 1 if the failure shows, with 0 if it does not, and with 3
if it can't run. This command exits with 0 if every failure shows.
"""

import subprocess
import sys
from pathlib import Path

_SHOWS, _CANNOT_RUN, _BROKEN = 1, 3, -1
_SAYS = {
    _SHOWS: "the failure shows",
    0: "the failure does not show: the page is out of date",
    _CANNOT_RUN: "can't run here",
}


def main(slugs: list[str]) -> int:
    here = Path(__file__).parent
    known = sorted(path.stem for path in here.glob("*.md") if path.stem != "README")
    unknown = [slug for slug in slugs if slug not in known]
    if not slugs or unknown:
        print(f"{f'no finding is called {unknown[0]}' if unknown else 'name findings'}; they are: {', '.join(known)}")
        return 2
    outcomes = [_outcome(here / f"{slug}.py") for slug in slugs]
    return 0 if all(outcome == _SHOWS for outcome in outcomes) else 1


def _outcome(script: Path) -> int:
    ended = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    # Python itself exits with 1 for an exception, which shows nothing.
    is_broken = ended.returncode == _SHOWS and "Traceback (most recent call last)" in ended.stderr
    status = _BROKEN if is_broken else ended.returncode
    print(f"{script.stem}: {_SAYS.get(status, f'the script itself failed, status {ended.returncode}')}")
    if status != _SHOWS:
        print(ended.stdout + ended.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
