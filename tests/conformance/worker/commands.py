"""What a worker does when it is told to: one request in, one reply out.

A reply is `{"value": ...}` or `{"error": {...}}`, and always carries what the
manager said meanwhile: `warnings` (log records from WARNING up, and Python
warnings).  Every error is the manager's: it raised, it gave an answer that the
contract does not know, or its adapter has no counterpart for the call.
The worker's life ends with `exit` (the interpreter's normal end), with the
loss of the suite, or with a signal from outside.
"""

import ast
import contextlib
import json
import logging
import operator
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from forge_conformance.adapter import Adapter, Hooks, Loaded, Settings, Unsupported, Window

from . import awkward, process, user, view
from .channel import Channel, Closed
from .handover import hand_over
from .interrupts import Interrupts, interrupt_in
from .workload import Loader, RefusingLoader, Workload, raw_bytes, settings_of_torch, with_fingerprints

ALL_PARTS = ("scheduler", "dataloader")
_HERE = str(Path(__file__).resolve().parent)

Value = TypeVar("Value")


class WrongAnswer(Exception):
    """The manager returned what the contract does not know; the text completes "load() ..."."""


class Worker:
    """One process life of one training run and its manager."""

    def __init__(self, channel: Channel, adapter_class: type[Adapter], device: str) -> None:
        self._channel = channel
        self._adapter_class = adapter_class
        self._device = device
        self._workload: Workload | None = None
        self._adapter: Adapter | None = None
        self._heard = _Heard()
        self._interrupts = Interrupts()
        self._handed_over: Any = None

    def live(self, request: dict[str, Any]) -> int:
        """Serve commands until told to end; the exit status of the process."""
        try:
            if request.get("filter"):
                self._hand_over_file_calls(request["filter"])
            self._channel.send({"value": os.getpid()})
            while True:
                command = self._channel.receive()
                if command["do"] == "exit":
                    self._heard.stop()
                    self._channel.send({"value": None, "warnings": self._heard.take()})
                    self._channel.close()
                    if self._adapter is not None and self._adapter.traits.has_end:
                        self._adapter.finish()
                    return 0
                self._channel.send(self._answer(command))
        except Closed:
            with contextlib.suppress(OSError):
                os.write(2, b"The connection to the suite is closed, so this process ends.\n")
            os._exit(0)

    def _hand_over_file_calls(self, watch: str) -> None:
        """The suite must answer for the filter before this process does anything else with files."""
        try:
            hand_over(watch, self._channel.fileno(), self._hand)
        except OSError as error:
            self._channel.send({"filtered": False, "reason": str(error)})

    def _hand(self, descriptor: int) -> None:
        self._channel.send({"filtered": True}, descriptors=(descriptor,))

    def _answer(self, command: dict[str, Any]) -> dict[str, Any]:
        arguments = {key: value for key, value in command.items() if key != "do"}
        life = os.getpid()
        try:
            with self._interrupts.in_call(command["do"]):
                value = getattr(self, f"do_{command['do']}")(**arguments)
            reply = {"value": _plain(value)}
        except SystemExit:
            raise
        except BaseException as error:  # whatever a manager raises is what is judged
            reply = {"error": _described(error)}
        if os.getpid() != life:
            os._exit(1)  # a child that the manager forked and let come back here: it has no say
        return {**reply, "warnings": self._heard.take()}

    # -- commands: each returns plain JSON values -------------------------------

    def do_see(self, instead: str, of: str) -> None:
        """From here on this process, and it alone, finds another directory at the path `of`."""
        view.mount(instead, of)

    def do_become(self, uid: int) -> None:
        """From here on this process is another user's."""
        user.become(uid)

    def do_renounce(self) -> None:
        """From here on permissions of files count for this process, whoever it is."""
        user.renounce()

    def do_chdir(self, path: str) -> None:
        os.chdir(path)

    def do_umask(self, mask: str) -> None:
        os.umask(int(mask, 8))

    def do_environment(self, variables: dict[str, str | None]) -> None:
        process.set_environment(variables)

    def do_process(self) -> dict[str, Any]:
        described = process.described()
        return {**described, "settings": {**described["settings"], **settings_of_torch()}}

    def do_open(
        self, settings: dict[str, Any], seed: int, place: dict[str, Any] | None = None, variety: str | None = None
    ) -> None:
        self._workload = _workload(seed, self._device, place, variety)
        window, hooks = settings.pop("window", None), settings.pop("hooks", None)
        window = None if window is None else Window(**window)
        hooks = None if hooks is None else Hooks(**hooks)
        self._adapter = self._adapter_class(
            _settings(self._adapter_class, **settings, window=window, hooks=hooks), self._workload
        )

    def do_train(self, steps: int) -> list[str]:
        return self._adapter.train(steps) if self._adapter is not None else self._training.train(steps)

    def do_save(
        self,
        step: int | None,
        extra: str | None,
        parts: list[str],
        tokens_seen: int | None = None,
        unsaveable: str | None = None,
    ) -> None:
        value = None if extra is None else ast.literal_eval(extra)
        if unsaveable is not None:
            value = {**(value or {}), unsaveable: lambda: None}
        step = self._training.step if step is None else step
        tokens_seen = self._training.tokens_seen if tokens_seen is None else tokens_seen
        if self._training.average is not None:
            value = {**(value or {}), "average": self._training.average}
        self._handed_over = value
        self._manager.save(step, tokens_seen, value, parts)

    def do_average(self) -> None:
        """From here on the run has an average of its weights, which it hands over in the extra of each save."""
        self._training.begin_average()

    def do_scaler(self, state: dict[str, Any] | None = None) -> dict[str, Any]:
        """The state of the run's loss scaler, after it was given this one, if any."""
        scaler = self._training.scaler
        assert scaler is not None, "the suite asks runs that have one"
        if state is not None:
            scaler.load_state_dict(state)
        return scaler.state_dict()

    def do_handed_over(self) -> str:
        """The extra of the last save, as it is now; a fingerprint in the place of each tensor."""
        return repr(with_fingerprints(self._handed_over))

    def do_save_object(self) -> None:
        """A save whose extra has a value that is no plain data."""
        extra = {"object": slice(1, 2)}
        self._manager.save(self._training.step, self._training.tokens_seen, extra, ALL_PARTS)

    def do_wait(self) -> None:
        self._manager.wait()

    def do_flush(self) -> None:
        self._manager.flush()

    def do_finish_deletions(self) -> None:
        self._manager.finish_deletions()

    def do_load(
        self, path: str | None, exclude: list[str], freeze_expected: list[dict[str, Any]] | None, parts: list[str]
    ) -> dict[str, Any]:
        """Watches which globals each file's pickle asks for, so that running pickled code can be told from data."""
        with _PickleWatch() as watch:
            loaded = _checked(self._manager.load(path, exclude, freeze_expected, parts))
        self._training.step, self._training.tokens_seen = loaded.step, loaded.tokens_seen
        extra = repr(with_fingerprints(loaded.extra))
        return {"step": loaded.step, "tokens_seen": loaded.tokens_seen, "extra": extra, "globals": watch.asked}

    def do_digest(self) -> dict[str, str]:
        return self._training.digest()

    def do_whole(self) -> dict[str, str]:
        return self._training.whole()

    def do_save_while_busy(self) -> dict[str, Any]:
        """Save while the compute stream is busy for seconds; whether it is when save returns, and what is pinned."""
        from .gpu import Busy, pinned_bytes, state_bytes

        before = pinned_bytes()
        busy = Busy(self._training.device)
        self.do_save(None, None, [])
        still_busy = busy.lasts()
        pinned, state = pinned_bytes() - before, state_bytes(self._training)
        return {"still_busy": still_busy, "pinned_bytes": pinned, "state_bytes": state}

    def do_rewrite_marker(self, path: str, how: str, value: str = "") -> str:
        from .odd import rewrite_marker  # imports more of torch than others need

        return rewrite_marker(path, how, value)

    def do_limit_memory(self, more_bytes: int) -> None:
        from .odd import limit_memory

        limit_memory(more_bytes)

    def do_exit_at_sigterm(self) -> None:
        """As scripts do that want to end in order; a handler that the manager has made stays."""
        if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))

    def do_heed_interrupts(self, how: str) -> None:
        """From here on take SIGINT as a script does that catches `KeyboardInterrupt`, sets a flag, or saves."""
        self._interrupts.heed(how, lambda: self.do_save(None, None, list(ALL_PARTS)))

    def do_interrupts(self) -> dict[str, Any]:
        return self._interrupts.take()

    def do_interrupt_in(self, part: str, doing: str) -> None:
        """The next time that the manager asks this part of the training to do this, SIGINT comes at its end."""
        interrupt_in(getattr(self._training, part), doing)

    def do_fork_sleeper(self) -> int:
        """Fork a child that sleeps until it is killed, as workers of a data loader do that hang; its number."""
        child = os.fork()
        if child == 0:
            while True:
                signal.pause()
        return child

    def do_ping(self) -> None:
        """Shows that the main thread is free to go on."""

    def do_weights(self) -> str:
        """The raw bytes of the first weight matrix, as hexadecimal text: to find it in a file."""
        return raw_bytes(next(self._training.model.parameters())).hex()

    def do_moments(self) -> str:
        """The same of that matrix's first moment."""
        matrix = next(self._training.model.parameters())
        moments = self._training.optimizer.state[matrix].values()
        return raw_bytes(next(moment for moment in moments if moment.shape == matrix.shape)).hex()

    def do_freeze(self) -> None:
        next(self._training.model.parameters()).requires_grad_(False)

    def do_enlarge(self, size_bytes: int) -> None:
        self._training.enlarge(size_bytes)

    def do_vary(self, seed: int) -> None:
        self._training.vary(seed)

    def do_alter(self, how: str) -> str:
        return self._training.alter(how)

    def do_add_state(self, kind: str, seed: int) -> str:
        module: Any = awkward.KINDS[kind](seed).to(self._training.device)
        self._training.model.append(module)  # type: ignore[operator]
        return str(len(self._training.model) - 1)  # type: ignore[arg-type]

    def do_expand(self) -> None:
        self._training.model[-1].expand()  # type: ignore[index]

    def do_nest_scheduler(self, kind: str = "inner") -> None:
        self._training.scheduler = awkward.nested(self._training.optimizer, kind)

    def do_fail_once(self, part: str) -> None:
        if part == "module":
            awkward.fail_once(self._training.model[-1], "set_extra_state")  # type: ignore[index]
        else:
            awkward.fail_once(getattr(self._training, part), "load_state_dict")

    def do_accumulate(self, how: str) -> None:
        self._training.accumulate(how)

    def do_scramble(self) -> None:
        self._training.scramble()

    def do_replace_dataloader(self, kind: str, seed: int) -> None:
        kinds = {"stateful": Loader, "refusing": RefusingLoader}
        self._training.dataloader = kinds[kind](seed) if kind in kinds else object()

    def do_apply_dataloader_state(self) -> None:
        self._manager.apply_dataloader_state(self._training.dataloader)

    def do_should_save(self, steps: list[int]) -> list[int]:
        return [step for step in steps if self._manager.should_save(step)]

    def do_milestones(self, steps: list[int]) -> list[int]:
        return [step for step in steps if self._manager.is_milestone(step)]

    def do_peek(self, path: str | None) -> int | None:
        return self._manager.peek(path)

    def do_pre_train(self) -> None:
        self._manager.pre_train()

    def do_batches(self, steps: int) -> list[str]:
        """As a training loop: the hook comes after each batch."""
        losses = []
        for _ in range(steps):
            losses += self.do_train(1)
            self._manager.post_train_batch()
        return losses

    def do_post_train(self) -> None:
        self._manager.post_train()

    def do_block_ephemeral(self, is_blocked: bool) -> None:
        self._manager.block_ephemeral(is_blocked)

    def do_checkpoint_pending(self) -> bool:
        return self._manager.checkpoint_pending()

    def do_register_strategy(self, name: str, fires: list[int], raises: Sequence[int] = ()) -> None:
        def strategy(step: int, start: int, stop: int) -> bool:
            if step in raises:
                raise RuntimeError(f"the strategy knows nothing of step {step}")
            return step in fires

        self._adapter_class.register_strategy(name, strategy)

    def do_list_strategies(self) -> list[str]:
        return self._adapter_class.list_strategies()

    def do_canonical_freeze(self, specs: list[tuple[str, bool]]) -> list[dict[str, Any]]:
        return self._adapter_class.canonical_freeze([(module, frozen) for module, frozen in specs])

    def do_effective_freeze(
        self, step: int, base: list[Any], schedule: list[Any], valid_modules: list[str] | None
    ) -> list[tuple[str, bool]]:
        stages = [(start, [tuple(pair) for pair in pairs]) for start, pairs in schedule]
        return self._adapter_class.effective_freeze(step, [tuple(pair) for pair in base], stages, valid_modules)

    @property
    def _training(self) -> Workload:
        assert self._workload is not None, "the suite opens first"
        return self._workload

    @property
    def _manager(self) -> Adapter:
        assert self._adapter is not None, "the suite opens first"
        return self._adapter


def _settings(adapter_class: type[Adapter], **settings: Any) -> Settings:
    """With the number that this manager takes for `keep_last_n` where all are to be kept."""
    plain = Settings(**settings)
    keeps_all = isinstance(plain.keep_last_n, int) and plain.keep_last_n <= 0
    return replace(plain, keep_last_n=adapter_class.traits.keep_all or plain.keep_last_n) if keeps_all else plain


def _workload(seed: int, device: str, place: dict[str, Any] | None, variety: str | None = None) -> Workload:
    if variety is not None:
        from .variety import VariedWorkload  # what else is trained, most runs need not know

        return VariedWorkload(variety, seed, device)
    if place is None:
        return Workload(seed, device)
    from .ranks import Place, RankWorkload  # imports more of torch than one process needs

    return RankWorkload(seed, Place(**place), device)


class _Heard(logging.Handler):
    """Collects what the manager says: log records from WARNING up, and Python warnings."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._messages: list[str] = []
        logging.getLogger().addHandler(self)
        self._filters = warnings.filters[:]
        warnings.simplefilter("always")
        self._show = warnings.showwarning
        self._is_over = False
        warnings.showwarning = self._on_warning  # type: ignore[assignment]  # it takes all that the original takes

    def emit(self, record: logging.LogRecord) -> None:
        if self._is_over and logging.lastResort is not None:  # another thread had begun to log before it was stopped
            logging.lastResort.handle(record)
            return
        try:
            self._messages.append(record.getMessage())
        except Exception:  # a message that its arguments don't fit; no handler lets that out
            self.handleError(record)

    def _on_warning(self, message: Warning | str, category: type[Warning], *where: Any) -> None:
        self._messages.append(f"{category.__name__}: {message}")

    def stop(self) -> None:
        """From here messages go where they would in any script: to standard error; what was heard is still to be taken.

        Threads may log at any time: each message is heard or goes there, none is lost in between.
        """
        with self.lock or contextlib.nullcontext():
            self._is_over = True
        logging.getLogger().removeHandler(self)
        warnings.showwarning = self._show
        warnings.filters[:] = self._filters  # type: ignore[index]  # a list, whatever the stubs say

    def take(self) -> list[str]:
        """What was heard since the last time."""
        messages, self._messages = self._messages, []
        return [_sendable(message) for message in messages]


class _PickleWatch:
    """While active: for each file opened last, the globals that a full unpickler looked up.

    The standard unpickler announces each lookup to the audit hooks; one that
    is restricted to data looks nothing up that way.  Audit hooks can't be
    removed, so one hook serves all watches of the process.
    """

    _active: "_PickleWatch | None" = None
    _installed = False

    def __init__(self) -> None:
        self.asked: dict[str, list[str]] = {}
        self._file = ""

    def __enter__(self) -> "_PickleWatch":
        if not _PickleWatch._installed:
            sys.addaudithook(_PickleWatch._on_event)
            _PickleWatch._installed = True
        _PickleWatch._active = self
        return self

    def __exit__(self, *_: object) -> None:
        _PickleWatch._active = None

    @staticmethod
    def _on_event(event: str, arguments: tuple[Any, ...]) -> None:
        watch = _PickleWatch._active
        if watch is None:
            return
        if event == "open" and isinstance(arguments[0], (str, bytes)):
            watch._file = os.path.basename(os.fsdecode(arguments[0]))
        elif event == "pickle.find_class":
            watch.asked.setdefault(watch._file, []).append(f"{arguments[0]}.{arguments[1]}")


def rehearse(
    adapter_class: type[Adapter], device: str, folder: str, mode: str, timeout_s: float, with_ranks: bool
) -> None:
    """One life that nobody judges, for the modules it imports; an alarm kills it in a call that does not return.

    `with_ranks`: as the only rank of a run that could have more.
    """
    rendezvous = os.path.join(folder, "rendezvous")
    place = {"rank": 0, "size": 1, "kind": "sharded", "stages": 0, "rendezvous": rendezvous, "timeout_s": timeout_s}

    def timed(call: Callable[..., Value], *arguments: Any) -> Value:
        signal.setitimer(signal.ITIMER_REAL, timeout_s)
        return call(*arguments)

    checkpoints = os.path.join(folder, "checkpoints")
    os.mkdir(checkpoints)
    training = timed(_workload, 1, device, place if with_ranks else None)

    def life() -> Adapter:
        return adapter_class(_settings(adapter_class, folder=checkpoints, mode=mode), training)

    first = timed(life)
    timed(first.train, 2)
    timed(first.save, 2, 2, None, ALL_PARTS)
    timed(first.wait)
    timed(timed(life).load, None, (), None, ALL_PARTS)
    training.digest()


def _checked(loaded: object) -> Loaded:
    """What `load` returned, if it is what the contract says; `WrongAnswer` names the field that is not."""
    if not isinstance(loaded, Loaded):
        raise WrongAnswer(f"returned {_shown(loaded)}, which is not step, tokens_seen and extra")
    counts = {}
    for name in ("step", "tokens_seen"):
        value = getattr(loaded, name)
        try:
            counts[name] = operator.index(value)
        except TypeError:
            raise WrongAnswer(f"returned {_shown(value)} as {name}, which is a whole number") from None
    if not isinstance(loaded.extra, Mapping):
        raise WrongAnswer(f"returned {_shown(loaded.extra)} as extra, which is a mapping")
    return Loaded(**counts, extra=dict(loaded.extra))


def _plain(value: Any) -> Any:
    """The value, if it can be sent."""
    try:
        json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        raise WrongAnswer(f"returned {_shown(value)}, which is not made of plain values") from None
    return value


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except Exception as error:
        text = f"something whose repr raises {type(error).__name__}"
    return f"{text if len(text) < 200 else text[:200] + '...'} ({type(value).__name__})"


def _described(error: BaseException) -> dict[str, Any]:
    kinds = [kind.__name__ for kind in type(error).__mro__]
    reasons = {Unsupported: "unsupported", WrongAnswer: "wrong-answer"}
    reason = next((reason for kind, reason in reasons.items() if isinstance(error, kind)), "raised")
    frames = traceback.format_exception(type(error), error, _without_ours(error.__traceback__))
    return {
        "reason": reason,
        "type": type(error).__name__,
        "kinds": kinds,
        "message": _sendable(_text(error)),
        "traceback": _sendable("".join(frames)[-6000:]),
    }


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:
        return "(its own text can't be made)"


def _sendable(text: str) -> str:
    """Lone surrogates, as undecodable file names leave them, can't travel or be written."""
    return text.encode("utf-8", "backslashreplace").decode()


def _without_ours(frames: TracebackType | None) -> TracebackType | None:
    """From the manager's first frame on; all of them where there is none."""
    theirs = frames
    while theirs is not None and theirs.tb_frame.f_code.co_filename.startswith(_HERE):
        theirs = theirs.tb_next
    return theirs or frames
