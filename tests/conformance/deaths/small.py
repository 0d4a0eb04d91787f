"""Runs a command that finds a small disk of its own at a directory: `python small.py DIRECTORY BYTES COMMAND...`.

The disk is empty and in memory, and nobody else sees it: the command has a mount
namespace of its own, in a user namespace of its own where that is allowed, so
that no privilege is needed.  It ends with status 125, and says why, where
neither is allowed.
"""

import ctypes
import os
import sys

_NEW_USER, _NEW_MOUNTS = 0x10000000, 0x20000
_RECURSIVE, _PRIVATE = 0x4000, 0x40000
REFUSED = 125


def main(directory: str, size_bytes: str, *command: str) -> None:
    """Become the command."""
    try:
        _own_namespace()
        _mount(None, "/", None, _RECURSIVE | _PRIVATE, None)
        _mount("tmpfs", directory, "tmpfs", 0, f"size={size_bytes},mode=0755")
    except OSError as error:
        print(f"a small disk can't be mounted here: {error}", file=sys.stderr)
        sys.exit(REFUSED)
    os.execvp(command[0], command)


def _own_namespace() -> None:
    user, group = os.geteuid(), os.getegid()
    try:
        _check("unshare", ctypes.CDLL(None, use_errno=True).unshare(_NEW_USER | _NEW_MOUNTS))
    except OSError:  # root may mount all the same
        _check("unshare", ctypes.CDLL(None, use_errno=True).unshare(_NEW_MOUNTS))
        return
    _write_proc("setgroups", "deny")
    _write_proc("uid_map", f"{user} {user} 1")
    _write_proc("gid_map", f"{group} {group} 1")


def _write_proc(name: str, text: str) -> None:
    with open(f"/proc/self/{name}", "w") as file:
        file.write(text)


def _mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None) -> None:
    texts = [None if text is None else os.fsencode(text) for text in (source, target, kind)]
    data = None if options is None else options.encode()
    _check("mount", ctypes.CDLL(None, use_errno=True).mount(*texts, ctypes.c_ulong(flags), data))


def _check(call: str, result: int) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
