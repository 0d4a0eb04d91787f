"""Puts a folder of ours in the place of another one, for this process and all that it starts.

Invariant: this module needs nothing but the standard library and imports nothing of the suite.  A replay script carries
its text.  What really stands at the place is never touched: the process gets a mount namespace of its own, in a user
namespace of its own where it needs one.
"""

import ctypes
import os

_NEW_USER, _NEW_MOUNTS = 0x10000000, 0x20000
_BIND, _RECURSIVE, _PRIVATE = 0x1000, 0x4000, 0x40000


def enter() -> None:
    """Get a mount namespace; `OSError` where the kernel or a container forbids it. There may be one thread only."""
    user, group = os.geteuid(), os.getegid()
    try:
        _call("unshare", _NEW_MOUNTS)
    except OSError:  # only the administrator may do that without a user namespace
        _call("unshare", _NEW_USER | _NEW_MOUNTS)
        for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    _call("mount", None, b"/", None, ctypes.c_ulong(_RECURSIVE | _PRIVATE), None)


def bind(folder: str, place: str) -> None:
    """From now on `folder` stands at `place`, which has to be a directory; who is in there is in `folder` then."""
    here = os.getcwd()
    _call("mount", os.fsencode(folder), os.fsencode(place), None, ctypes.c_ulong(_BIND), None)
    os.chdir(here)  # otherwise what is opened by a relative name would be what really stands there


def unbind(place: str) -> None:
    """What really stands there is there again."""
    here = os.getcwd()
    _call("umount2", os.fsencode(place), 2)  # also if somebody still looks at it
    os.chdir(here)


def _call(name: str, *arguments: object) -> None:
    if getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments):
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
