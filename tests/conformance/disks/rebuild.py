"""Makes a folder as a disk has it: the function that replay scripts carry along as text."""

import base64
import os
import shutil


def rebuild(folder: str, disk: list[tuple[str, str, int, int, str]]) -> str:
    """Return the folder, or the highest one above it that had to be made, too.

    Each entry is a path, its kind, its mode, its age in milliseconds, and its content; the folder itself stays.
    """
    made = folder
    while not os.path.lexists(above := os.path.dirname(made)):
        made = above
    os.makedirs(folder, exist_ok=True)
    for entry in os.scandir(folder):
        shutil.rmtree(entry.path) if entry.is_dir(follow_symlinks=False) else os.unlink(entry.path)
    for path, kind, mode, _, content in sorted(disk):
        place = os.path.join(folder, path)
        if kind == "d":
            os.mkdir(place, mode)
        elif kind == "l":
            os.symlink(os.fsdecode(base64.b85decode(content)), place)
        else:
            with open(place, "wb") as file:
                file.write(base64.b85decode(content))
            os.chmod(place, mode)
    for path, kind, _, age, _ in disk:
        if kind != "l":
            os.utime(os.path.join(folder, path), ns=((1_600_000_000_000 + age) * 1_000_000,) * 2)
    return made
