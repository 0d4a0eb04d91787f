"""The channel between suite and worker: messages and descriptors arrive whole and in order, however the bytes do."""

import json
import os
import socket
import threading
from collections.abc import Iterator

import pytest

from forge_conformance.runs.process import connect
from forge_conformance.worker.channel import Channel, Closed

Ends = tuple[socket.socket, Channel]


@pytest.fixture
def ends() -> Iterator[Ends]:
    """A bare socket, and the channel at its other end."""
    bare, other = connect()
    channel = Channel(other)
    yield bare, channel
    bare.close()
    channel.close()


def line(message: object) -> bytes:
    return json.dumps(message).encode() + b"\n"


def test_a_message_that_comes_byte_by_byte_is_one_message(ends: Ends) -> None:
    bare, channel = ends
    message = {"text": "two\nlines, and an umlaut: ä"}

    def trickle() -> None:
        for byte in line(message):
            bare.send(bytes([byte]))

    sender = threading.Thread(target=trickle)
    sender.start()
    assert channel.receive(20) == message
    sender.join()


def test_messages_that_come_together_are_taken_one_by_one(ends: Ends) -> None:
    bare, channel = ends
    messages = [{"number": number} for number in range(5)]
    bare.sendall(b"".join(line(message) for message in messages) + b'{"number"')
    assert not channel.has_message
    assert [channel.receive(20) for _ in messages] == messages
    assert not channel.has_message
    bare.sendall(b": 5}\n")
    assert channel.receive(20) == {"number": 5}


def test_what_was_received_in_part_before_a_timeout_is_not_lost(ends: Ends) -> None:
    bare, channel = ends
    bare.sendall(b'{"half": ')
    with pytest.raises(TimeoutError):
        channel.receive(0.01)
    bare.sendall(b'"whole"}\n')
    assert channel.receive(20) == {"half": "whole"}


@pytest.mark.parametrize("size", [10, 1_000_000])
def test_descriptors_arrive_with_their_message_and_in_order(ends: Ends, size: int) -> None:
    bare, channel = ends
    sender = Channel(bare)
    pipes = [os.pipe() for _ in range(2)]
    message = {"padding": "x" * size}

    def send() -> None:
        sender.send({})
        sender.send(message, tuple(write for _, write in pipes))
        sender.send({})

    thread = threading.Thread(target=send)
    thread.start()
    assert [channel.receive(20) for _ in range(3)] == [{}, message, {}]
    thread.join()
    for read, write in pipes:
        os.close(write)
        taken = channel.take_descriptor()
        os.write(taken, b"through")
        os.close(taken)
        assert os.read(read, 100) == b"through"
        assert os.read(read, 100) == b"", "no other copy of the descriptor is open"
        os.close(read)


def test_closing_a_channel_closes_the_descriptors_that_nobody_took(ends: Ends) -> None:
    bare, channel = ends
    read, write = os.pipe()
    socket.send_fds(bare, [line({})], [write])
    os.close(write)
    channel.receive(20)
    channel.close()
    assert os.read(read, 1) == b""
    os.close(read)


def test_the_end_of_the_other_side_is_told_from_silence(ends: Ends) -> None:
    bare, channel = ends
    bare.sendall(line({"last": "word"}) + b'{"cut": ')
    bare.close()
    assert channel.receive(20) == {"last": "word"}
    with pytest.raises(Closed):
        channel.receive(20)
    with pytest.raises(Closed):
        channel.send({"heard by": "nobody"})
