"""One rank of several dies alone: the others go on, and what they do then is judged as well."""

import sys

from .conftest import Judged, needs_recorder, replayed

pytestmark = needs_recorder

TWO = """
import json, os, socket, sys
folder, rank = sys.argv[1], int(os.environ["RANK"])
address = ("127.0.0.1", int(os.environ["MASTER_PORT"]))
if rank == 0:
    with socket.create_server(address) as server:
        peer, _ = server.accept()
else:
    peer = socket.socket()
    while peer.connect_ex(address):
        peer.close()
        peer = socket.socket()

def says(word):
    peer.sendall(word)

def hears():
    try:
        return peer.recv(1)
    except ConnectionError:
        return b""

def replace(path, value):
    with open(f"{path}.{rank}", "w") as file:
        json.dump(value, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(f"{path}.{rank}", path)

latest, step = os.path.join(folder, "latest"), 0
if os.path.exists(latest):
    step = json.load(open(latest))
    json.load(open(os.path.join(folder, f"{step}-{rank}")))
if rank:
    says(b"l")
else:
    hears() or sys.exit("rank 1 has not started")
while step < 6:
    step += 1
    if rank == 0:
        print(f"step {step} loss {1 / step:.4f}")
        says(b"g")
    else:
        hears() or sys.exit("rank 0 is lost")
    if step % 2 == 0:
        replace(os.path.join(folder, f"{step}-{rank}"), step)
        if rank:
            says(b"d")
            hears() or sys.exit("rank 0 is lost")
        else:
            WAITS
            replace(latest, step)
            says(b"g")
"""
RIGHT_TWO = TWO.replace("WAITS", "hears() or sys.exit('rank 1 is lost')")
TRUSTING = TWO.replace("WAITS", "hears()")
"""A rank that is lost counts as one that has saved."""


def test_a_rank_that_takes_a_lost_one_for_a_ready_one_is_found_and_replayed(judged: Judged) -> None:
    ran = judged(TRUSTING, "--ranks", "2", "--deaths", "kill,rank", "--grace", "5")
    assert ran.status == 1, ran.said + ran.errors
    assert ("script.starts", "refused", "rank") in ran.verdicts
    assert not any(death == "kill" for *_, death in ran.verdicts), "all ranks at once leave no such disk"
    assert "rank 1 alone is killed, and the others" in ran.said
    assert replayed(ran.out / "replay-1.py") == (1, "verdict: refused")


def test_a_right_script_loses_nothing_with_one_of_its_ranks(judged: Judged) -> None:
    """It is tried unless other deaths are named."""
    ran = judged(RIGHT_TWO, "--ranks", "2", "--grace", "5")
    assert ran.status == 0, ran.said + ran.errors
    (lost,) = (one for one in ran.report["explored"] if one["storage"] == "rank")
    assert lost["states"] == 16, "two ranks, in two ways, at a line and three operations"


def test_one_rank_can_not_be_lost_of_one(judged: Judged) -> None:
    ran = judged(RIGHT_TWO, "--deaths", "rank", words=[sys.executable, "-c", "", "{dir}"])
    assert ran.status == 2
    assert "give --ranks 2 or more" in ran.errors
