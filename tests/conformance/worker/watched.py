"""Becomes a command whose file operations are handed over: `path/to/worker watched CHANNEL WATCH COMMAND...`.

The command is not changed in any way: it is watched from its first instruction, with all that it starts.
"""

import os
import signal
import socket
from collections.abc import Sequence
from typing import NoReturn

from .handover import hand_over, send_over

REFUSED = 126
"""The exit status where the command could not be watched; the reason was sent over the channel."""


def main(arguments: Sequence[str]) -> NoReturn:
    """Hand over, then execute."""
    channel, watch, *command = arguments
    with socket.socket(fileno=int(channel)) as connection:
        try:
            hand_over(watch, connection.fileno(), lambda descriptor: send_over(connection, descriptor))
        except OSError as error:
            connection.send(str(error).encode())
            os._exit(REFUSED)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background ignores it, and so would the command
    try:
        os.execvp(command[0], command)
    except OSError as error:
        os.write(2, f"{command[0]}: {error.strerror}\n".encode())
        os._exit(127)
