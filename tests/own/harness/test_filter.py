"""The kernel filter's tables, on every machine that they know: an interpreter runs the program as the kernel would.

The numbers are checked against a second source where there is one: the kernel headers of the machine at hand.
"""

import errno
import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from forge_conformance.worker import filter as kernel_filter
from forge_conformance.worker import system_calls
from forge_conformance.worker.system_calls import CHANGES, LOOKS, READS, REFUSED, STORES

MACHINES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
ALLOW, NOTIFY, REFUSE = "allow", "notify", "not implemented"
_ANSWERS = {0x7FFF0000: ALLOW, 0x7FC00000: NOTIFY, 0x00050000 | errno.ENOSYS: REFUSE}


@dataclass(frozen=True)
class Call:
    """What the kernel shows to a filter: `struct seccomp_data`."""

    number: int
    machine: int
    arguments: tuple[int, ...] = (0,) * 6

    def word(self, offset: int) -> int:
        """32 bits of it, at an offset."""
        words = {0: self.number, 4: self.machine}
        words |= {16 + 8 * i: value & 0xFFFFFFFF for i, value in enumerate(self.arguments)}
        return words[offset]


def answer(program: list[kernel_filter.Instruction], call: Call) -> str:
    """Classic BPF, as far as the filter uses it."""
    at, accumulator = 0, 0
    while True:
        code, if_true, if_false, operand = program[at]
        at += 1
        match code:
            case 0x20:  # load a word
                accumulator = call.word(operand)
            case 0x15:  # jump if equal
                at += if_true if accumulator == operand else if_false
            case 0x45:  # jump if any bit is set
                at += if_true if accumulator & operand else if_false
            case 0x06:  # return
                return _ANSWERS[operand]
            case _:
                raise AssertionError(f"no such instruction: {code:#x}")


@pytest.mark.parametrize("watch", kernel_filter.WATCHES)
@pytest.mark.parametrize("machine", MACHINES)
def test_every_listed_call_is_handed_over(machine: str, watch: str) -> None:
    program = kernel_filter.program(machine, watch)
    writing = (0, os.O_WRONLY, os.O_WRONLY, 0, 0, 0)  # the flags are argument 1 of open and 2 of openat
    numbers = system_calls.numbers(machine, CHANGES)
    assert {answer(program, Call(number, MACHINES[machine], writing)) for number in numbers.values()} == {NOTIFY}


@pytest.mark.parametrize(
    ("watch", "expected"),
    [("writes", ALLOW), ("reads", NOTIFY), ("loads", NOTIFY), ("storing", ALLOW), ("looks", NOTIFY)],
)
@pytest.mark.parametrize("machine", MACHINES)
def test_an_open_that_only_reads_passes_unless_reads_are_asked_for(machine: str, watch: str, expected: str) -> None:
    program = kernel_filter.program(machine, watch)
    numbers = system_calls.numbers(machine, CHANGES)
    for name, place in {"open": 1, "openat": 2}.items():
        for flags in (os.O_RDONLY, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY | os.O_NOFOLLOW):
            arguments = tuple(flags if i == place else 0xFFFFFFFF for i in range(6))
            if name in numbers:
                assert answer(program, Call(numbers[name], MACHINES[machine], arguments)) == expected


@pytest.mark.parametrize("flags", [os.O_WRONLY, os.O_RDWR, os.O_RDONLY | os.O_CREAT, os.O_RDONLY | os.O_TRUNC])
@pytest.mark.parametrize("machine", MACHINES)
def test_an_open_that_may_change_a_file_is_handed_over(machine: str, flags: int) -> None:
    number = system_calls.numbers(machine, CHANGES)["openat"]
    call = Call(number, MACHINES[machine], (0, 0, flags, 0, 0, 0))
    assert answer(kernel_filter.program(machine, "writes"), call) == NOTIFY


@pytest.mark.parametrize(
    ("watch", "handed_over"),
    [
        ("writes", set()),
        ("storing", {"close", "sync", "syncfs"}),
        ("loads", {"newfstatat", "statx", "getdents64"}),
        ("looks", {"newfstatat", "statx", "getdents64", "sync"}),
    ],
)
@pytest.mark.parametrize("machine", MACHINES)
def test_looks_and_what_stores_are_handed_over_on_request(machine: str, watch: str, handed_over: set[str]) -> None:
    program = kernel_filter.program(machine, watch)
    more = system_calls.numbers(machine, STORES, LOOKS)
    found = {name for name, number in more.items() if answer(program, Call(number, MACHINES[machine])) == NOTIFY}
    assert found >= handed_over
    assert bool(found) == bool(handed_over)


@pytest.mark.parametrize("watch", kernel_filter.WATCHES)
@pytest.mark.parametrize("machine", MACHINES)
def test_what_reads_from_an_open_file_is_handed_over_only_of_a_load(machine: str, watch: str) -> None:
    program, reads = kernel_filter.program(machine, watch), system_calls.numbers(machine, READS)
    assert reads.keys() == {"read", "pread64", "readv", "preadv", "preadv2"}
    expected = NOTIFY if watch == "loads" else ALLOW
    assert {answer(program, Call(number, MACHINES[machine])) for number in reads.values()} == {expected}


@pytest.mark.parametrize("machine", MACHINES)
def test_of_all_maps_only_shared_writable_ones_are_handed_over(machine: str) -> None:
    program = kernel_filter.program(machine, "storing")
    number = system_calls.numbers(machine, STORES)["mmap"]
    read, write, shared, private = 1, 2, 1, 2
    answers = {
        (protection, flags): answer(program, Call(number, MACHINES[machine], (0, 0, protection, flags, 0, 0)))
        for protection in (read, read | write)
        for flags in (shared, private)
    }
    assert [kind for kind, found in answers.items() if found == NOTIFY] == [(read | write, shared)]


@pytest.mark.parametrize("machine", MACHINES)
def test_what_would_change_files_unseen_is_not_implemented(machine: str) -> None:
    program = kernel_filter.program(machine, "writes")
    refused = system_calls.numbers(machine, REFUSED)
    assert refused.keys() >= {"sendfile", "splice", "copy_file_range", "io_uring_setup", "openat2"}
    assert {answer(program, Call(number, MACHINES[machine])) for number in refused.values()} == {REFUSE}


@pytest.mark.parametrize("machine", MACHINES)
def test_all_other_calls_pass(machine: str) -> None:
    program = kernel_filter.program(machine, "writes")
    listed = set(system_calls.numbers(machine, CHANGES, REFUSED).values())
    others = set(range(600)) - listed
    assert {answer(program, Call(number, MACHINES[machine], (0xFFFFFFFF,) * 6)) for number in others} == {ALLOW}


@pytest.mark.parametrize("machine", MACHINES)
def test_calls_of_another_machine_pass_because_their_numbers_mean_something_else(machine: str) -> None:
    program = kernel_filter.program(machine, "reads")
    numbers = system_calls.numbers(machine, CHANGES).values()
    assert {answer(program, Call(number, 0x40000003)) for number in numbers} == {ALLOW}


def test_the_machines_differ_only_in_calls_that_the_newer_one_dropped() -> None:
    x86, arm = (set(system_calls.numbers(machine, CHANGES)) for machine in ("x86_64", "aarch64"))
    dropped = {"open", "creat", "mkdir", "rmdir", "unlink", "rename", "link", "symlink"}
    assert arm < x86
    assert x86 - arm == dropped
    assert {f"{name}at" for name in dropped - {"creat", "rmdir"}} <= arm


def test_the_numbers_are_those_of_this_machines_kernel() -> None:
    machine = platform.machine()
    include = Path("/usr/include")
    headers = [*include.glob("asm/unistd_64.h"), *include.glob("*/asm/unistd_64.h")]
    if machine not in MACHINES or not headers:
        pytest.skip(f"no kernel headers of a machine that the filter knows: {machine}")
    ours = all_numbers(machine)
    assert {name: numbers_in(headers[0]).get(name) for name in ours} == ours


def test_the_numbers_of_the_newer_machine_are_the_generic_ones() -> None:
    header = Path("/usr/include/asm-generic/unistd.h")
    if not header.exists():
        pytest.skip("no kernel headers with the generic numbers")
    ours = all_numbers("aarch64")
    assert {name: numbers_in(header).get(name) for name in ours} == ours


def numbers_in(header: Path) -> dict[str, int]:
    found = re.findall(r"#define __NR(?:3264)?_(\w+) (\d+)", header.read_text())
    names = {"fstatat": "newfstatat"}
    return {names.get(name, name): int(number) for name, number in found}


def all_numbers(machine: str) -> dict[str, int]:
    return system_calls.numbers(machine, *(call.kind for call in system_calls.CALLS.values()))


def test_a_machine_without_a_table_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "vax")
    with pytest.raises(OSError, match=r"no system-call table for vax; known are x86_64, aarch64"):
        kernel_filter.install()
