"""The image and the action agree with the distribution and with their page, as far as that shows without Docker."""

import re
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "scripts.md").read_text()


def instructions(word: str) -> list[str]:
    """The arguments of each such instruction of the Dockerfile; continued lines are joined."""
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    return [line.removeprefix(f"{word} ").strip() for line in text.splitlines() if line.startswith(f"{word} ")]


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_the_image_copies_all_that_the_distribution_is_made_of() -> None:
    copied = {path: where for line in instructions("COPY") for *paths, where in [line.split()] for path in paths}
    assert [path for path in copied if not (ROOT / path).exists()] == []
    metadata = project()["project"]
    files = [metadata["readme"], *metadata["license-files"], "pyproject.toml"]
    assert {path: copied.get(path) for path in files} == dict.fromkeys(files, "/source/")
    rooms = project()["tool"]["setuptools"]["package-dir"].values()
    assert {path: copied.get(path) for path in rooms} == {path: f"/source/{path}" for path in rooms}


def test_the_image_installs_what_it_copied_and_starts_a_command_that_there_is() -> None:
    (install,) = instructions("RUN")
    (constraint,) = re.findall(r"--constraint /source/(\S+)", install)
    assert any(constraint in line.split() for line in instructions("COPY"))
    assert re.search(r" /source && rm -r /source$", re.sub(r"\s+", " ", install))
    (entry,) = instructions("ENTRYPOINT")
    assert entry.strip('["]') in project()["project"]["scripts"]


def test_the_page_uses_the_action_by_its_inputs_and_the_image_by_its_folder() -> None:
    given = re.search(r"uses: OWNER/forge-ref@main\n  with:\n((?:    \w+: .*\n)+)", PAGE)
    assert given, "the page shows the action"
    inputs, _, _ = (ROOT / "action.yml").read_text().partition("outputs:")
    declared = re.findall(r"^  (\w+):$", inputs, re.M)
    assert set(re.findall(r"^    (\w+):", given[1], re.M)) <= set(declared)
    (folder,) = instructions("WORKDIR")
    (started,) = re.findall(r"^ *docker run .*$", PAGE, re.M)
    assert f'-v "$PWD:{folder}"' in started
