"""The contract between the suite and a checkpoint manager: this page is all of it.

A manager with the drop-in API (`CheckpointConfig`, `CheckpointManager`, ...)
needs no code: `--impl its.module`.  Any other manager gets a subclass of
`Adapter` in a file of its own: `--impl my_adapter.py:MyAdapter`.

The suite makes one adapter object in each process of a run.  It calls the
methods below on the main thread of a worker process, one at a time, and may
kill that process at any moment.  With several ranks (`distributed`) each of
them is a process with an adapter object of its own; `torch.distributed` is
initialised before it is made, and all ranks get the same calls.  An adapter translates and does nothing else:
no retries, no clean-up, no waiting that the manager would not do by itself.
Whatever the manager raises, let it out: errors are part of what is judged.

This file imports the standard library alone, because it is also loaded inside
the manager's own Python (`--python`), where nothing of the suite is installed.

How flush timing is controlled
------------------------------
The suite holds a background flush, lets it go, or kills it at an exact file
operation, without sleeps and without the manager's help.  Workers run under a
kernel filter (seccomp user notification) that stops every system call which
would change a file: opening for writing, writing, creating, renaming,
linking, deleting, truncating, syncing.  The suite answers each of them: *go on*, or not yet.
*Background* is whatever is not the worker's main thread: threads, forked and
spawned processes, C++ and Rust writers alike.  So a manager that writes files
needs nothing to be testable, with one rule for its adapter: call the manager
on the thread you were called on.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Protocol


@dataclass(frozen=True)
class Claims:
    """What an implementation says of itself; it is judged on this and no more."""

    level: str = "core"
    """`core`, `strict` or `durable`."""
    capabilities: tuple[str, ...] = ("sync",)
    """Names out of `forge_spec.CAPABILITIES`; `forge-conformance list --capabilities` explains them. One that no clause
    judges without another, such as `reshard` without `distributed`, is refused."""
    without: tuple[str, ...] = ()
    """Capabilities that come with one of these and are not claimed: `loader-later` comes with `dataloader`. Frameworks
    that are given their loader when the loop begins, such as Lightning, need it."""


@dataclass(frozen=True)
class Layout:
    """What a checkpoint looks like on disk, so that the suite can look for itself."""

    checkpoint: str = r"step_(?P<step>0|[1-9][0-9]*)"
    """A regular expression for the whole name of one entry of the folder; the group `step` is its step."""
    is_dir: bool = True
    """Whether that entry is a directory, or one file."""
    required: tuple[str, ...] = (".metadata", "train_state.pt", "metadata.json")
    """Paths inside the directory without which the checkpoint is not complete."""
    pointer: str | None = "latest"
    """The name of the entry that points at the newest committed checkpoint, if there is one."""
    pointer_kind: str = "symlink"
    """`symlink`, or `text` for a file whose content is the name of the checkpoint, or its whole path."""
    name: str = "step_{step}"
    """How the manager names the checkpoint of a step; used to make look-alikes and to name a path."""
    stage: str = "pp{stage}"
    """The directory in a checkpoint that a pipeline stage has for its shards (`pipeline`)."""
    required_of_stage: tuple[str, ...] = (".metadata",)
    """Those of `required` that each stage has in its own directory instead (`pipeline`)."""


@dataclass(frozen=True)
class Traits:
    """How a manager works where the clauses leave it free.

    A test that needs another way of working is *unreached*, with the trait as
    its reason; so each trait takes questions away, and only what is true of
    the manager itself belongs here.  `forge-conformance list --traits` prints
    these texts.
    """

    counts_steps: bool = False
    """It counts the training steps itself and can't save under another number. Frameworks that own the training loop,
    such as Lightning, name a checkpoint after their own count."""
    resumes_at_start: bool = False
    """It resumes by itself when it is made or when its loop begins, so no run begins anew beside checkpoints. Trainers
    that look into their folder when they start, such as that of OLMo-core, need it."""
    saves_after_step: bool = False
    """It can save only when it has trained a step since it began or resumed. Frameworks that save in a hook after the
    batch, under the number of that batch, such as MMEngine, need it."""
    dies_of_failed_save: bool = False
    """After a save that raised it can't be used any more, and a new process has to go on. Frameworks whose loop ends
    with the error, and managers whose background process is gone, need it."""
    deletes_late: bool = False
    """It deletes old checkpoints in a thread or at the next batch, not before `save` or `wait` return; its adapter
    defines `finish_deletions`. Managers with a thread for deletions, such as torchtitan's, need it."""
    load_path_is_fallback: bool = False
    """It uses `load_path` only in a folder without a checkpoint. Trainers with a setting for the weights that a new run
    starts from, such as torchtitan's `initial_load_path`, need it."""
    has_end: bool = False
    """A script has to make a call at its end, and the adapter defines it as `finish`. Managers with `close()`, and
    frameworks that flush when their loop ends, need it."""
    min_keep_last_n: int = 1
    """The smallest limit above 0 that it accepts for `keep_last_n`. Managers that refuse to keep a single checkpoint,
    such as torchtitan's, need it."""
    keep_all: int = 0
    """What it is given for `keep_last_n` to keep all checkpoints. Managers that refuse 0 need a large number here."""
    names_folder: str = ""
    """The name that it gives its folder of checkpoints itself, inside the directory that it is given. Managers with a
    directory for a whole project, such as accelerate's, need it."""


@dataclass(frozen=True)
class Window:
    """Steps `start` to `stop`, both included, in which `strategy` decides what is saved."""

    start: int
    stop: int
    strategy: str = "power2"


@dataclass(frozen=True)
class Hooks:
    """What a manager is configured with that hooks of the training loop drive (`ephemeral`); None turns one off."""

    save_interval: int | None = 250
    ephemeral_save_interval: int | None = None
    pre_train_checkpoint: bool | None = None
    remove: str = "ephemeral_only"
    """`ephemeral_only`, `all_non_permanent` or `never`."""
    ephemeral_cooldown: int | None = None
    """(`cooldown`)"""
    fixed_steps: tuple[int, ...] | None = None
    """(`fixed-steps`)"""
    max_checkpoints: int | None = None
    """(`max-permanent`)"""
    enabled: bool = True


@dataclass(frozen=True)
class Settings:
    """What the suite asks a manager to be configured with.

    A setting that a manager does not have comes with a capability that it
    does not claim, and then always has the default written here.
    """

    folder: str
    mode: str = "sync"
    """`sync`, `async` or `pinned`; with `hooks` also `unset`, for what the manager does if nothing is said."""
    keep_last_n: int = 0
    """How many checkpoints to keep; 0 and less keep all.  It is never outside what `Traits` says is accepted."""
    interval: int = 1000
    window: Window | None = None
    load_path: str | None = None
    exclude_from_loading: tuple[str, ...] = ()
    ignore_freeze_mismatch: bool = False
    hooks: Hooks | None = None
    """Given where hooks decide what is saved; then `save` is not called, and `keep_last_n` to `take_over` are unset."""
    take_over: bool = False
    """Whether the manager takes the folder over from a process that holds it (`one-writer`)."""
    timeout_s: float | None = None
    """How long a rank may wait for another one, where there are several; groups of processes that are made without a
    timeout have this one by themselves."""


@dataclass(frozen=True)
class Loaded:
    """What a load returned; a fresh start is `Loaded()`."""

    step: int = 0
    tokens_seen: int = 0
    extra: Mapping[str, Any] = field(default_factory=dict)


class Training(Protocol):
    """The training run in the worker, deterministic to the bit; the manager saves and restores it.

    `model`, `optimizer`, `scheduler` are plain torch objects; `dataloader` has
    `state_dict` and `load_state_dict`.  `step` and `tokens_seen` count what
    was trained; the worker sets them after a load from what `load` returned.

    Under pipeline parallelism `stage` is the number of this rank's stage and
    `process_group` the ranks that share its shards; training uses that group
    as well.  Otherwise both are None, and all ranks share the shards.
    """

    model: Any
    optimizer: Any
    scheduler: Any
    dataloader: Any
    step: int
    tokens_seen: int
    process_group: Any
    stage: int | None

    def train(self, steps: int) -> list[str]:
        """Take that many optimizer steps; the loss of each, as exact hexadecimal text."""


class Unsupported(Exception):
    """An adapter's answer to a call that its manager has no counterpart for."""


class Adapter:
    """Subclass this; `claims`, `save`, `wait` and `load` are the whole duty."""

    claims: ClassVar[Claims] = Claims()
    layout: ClassVar[Layout] = Layout()
    traits: ClassVar[Traits] = Traits()
    hooked_layout: ClassVar[Layout | None] = None
    """What hooks save looks like on disk; None: like everything else (`ephemeral`)."""
    distributions: ClassVar[tuple[str, ...]] = ()
    """Installed packages whose versions the report names, besides that of the `--impl` module itself."""

    job: ClassVar[str] = ""
    """A command that trains with the manager and prints its progress (`script`). `{dir}` stands for the folder of its
    checkpoints, `{python}` for the manager's Python, and `{file}` for the adapter's own file."""

    def __init__(self, settings: Settings, training: Training) -> None:
        """Make the manager for this process, as a training script would, before anything is loaded."""
        self.settings = settings
        self.training = training

    # -- the duty -------------------------------------------------------------

    def save(self, step: int, tokens_seen: int, extra: Mapping[str, Any] | None, parts: Sequence[str]) -> None:
        """Save now, whatever the schedule says; return when the manager returns.

        `parts` names what else is handed over: `scheduler`, `dataloader`.
        """
        raise NotImplementedError

    def wait(self) -> None:
        """Return when no flush is pending and all that was saved is committed."""
        raise NotImplementedError

    def load(
        self,
        path: str | None,
        exclude: Sequence[str],
        freeze_expected: Sequence[Mapping[str, Any]] | None,
        parts: Sequence[str],
    ) -> Loaded:
        """Resume the training in place: from `path` if one is named, else wherever the manager decides.

        `exclude` names what to leave as it is: `model`, `optimizer`,
        `scheduler`, `dataloader`, `rng` (`exclude`), and names of parameters
        and buffers, or what they begin with up to a dot (`partial`).
        """
        raise NotImplementedError

    # -- what a trait asks for --------------------------------------------------

    def finish_deletions(self) -> None:
        """Return when everything that is due for deletion is gone (`Traits.deletes_late`)."""

    def finish(self) -> None:
        """What a script calls at its end, as its last statement (`Traits.has_end`)."""

    # -- what some managers offer besides; each belongs to a capability -------

    def train(self, steps: int) -> list[str]:
        """Train; override where the manager only lives inside a training loop of its own."""
        return self.training.train(steps)

    def flush(self) -> None:
        """`flush_pending_save`: commit what is pending (`async`)."""
        self.wait()

    def should_save(self, step: int) -> bool:
        """Whether the schedule asks for a save at this step (`schedule`)."""
        raise Unsupported("should_save")

    def is_milestone(self, step: int) -> bool:
        """Whether the step is a milestone of the window (`window`)."""
        raise Unsupported("is_milestone")

    def peek(self, path: str | None) -> int | None:
        """The step that a load would land on, without loading (`peek`)."""
        raise Unsupported("peek")

    def apply_dataloader_state(self, dataloader: Any) -> None:
        """Give a loader that was not at hand during `load` its state (`dataloader`)."""
        raise Unsupported("apply_dataloader_state")

    def pre_train(self) -> None:
        """The hook before the first batch; the run's step is `training.step` (`ephemeral`)."""
        raise Unsupported("pre_train")

    def post_train_batch(self) -> None:
        """The hook after each batch (`ephemeral`)."""
        raise Unsupported("post_train_batch")

    def post_train(self) -> None:
        """The hook after the last batch (`ephemeral`)."""
        raise Unsupported("post_train")

    def block_ephemeral(self, is_blocked: bool) -> None:
        """From here on the run blocks ephemeral checkpoints, or does so no longer (`ephemeral`)."""
        raise Unsupported("block_ephemeral")

    def checkpoint_pending(self) -> bool:
        """Whether a save of a hook is not finished yet (`ephemeral`)."""
        raise Unsupported("checkpoint_pending")

    @classmethod
    def register_strategy(cls, name: str, fires: Callable[[int, int, int], bool]) -> None:
        """Register a window strategy `fires(step, start, stop)` under `name` (`window`)."""
        raise Unsupported("register_strategy")

    @classmethod
    def list_strategies(cls) -> list[str]:
        """Names of the window strategies there are (`window`)."""
        raise Unsupported("list_strategies")

    @classmethod
    def canonical_freeze(cls, specs: Iterable[tuple[str, bool]]) -> list[dict[str, Any]]:
        """Canonical freeze metadata of (module, frozen) pairs (`freeze`)."""
        raise Unsupported("canonical_freeze")

    @classmethod
    def effective_freeze(
        cls,
        step: int,
        base: Iterable[tuple[str, bool]],
        schedule: Iterable[tuple[int, Iterable[tuple[str, bool]]]],
        valid_modules: Iterable[str] | None,
    ) -> list[tuple[str, bool]]:
        """The freeze list that is active at a step, as (module, frozen) pairs (`freeze`)."""
        raise Unsupported("effective_freeze")

    @classmethod
    def probe(cls) -> dict[str, bool]:
        """Which capabilities the implementation visibly has or lacks, whatever is claimed; silent ones are left out."""
        return {}


class CallbackAdapter(Adapter):
    """For managers of the second design (`ephemeral`): a callback, bound to a run that it saves through.

    A subclass makes `callback` and `run`, which have the names of that design,
    and adds `load`.
    """

    layout: ClassVar[Layout] = Layout(
        checkpoint=r"step(?P<step>0|[1-9][0-9]*)",
        required=("train/rank0.pt", "model_and_optim/.metadata", ".metadata.json"),
        pointer=None,
        name="step{step}",
    )
    callback: Any
    run: Any
    future: Any = None
    """The save that `wait` has to await."""

    def callback_fields(self, strategy: Callable[[str], Any]) -> dict[str, Any]:
        """What the callback is made with; `strategy` makes a removal strategy out of its name."""
        fields = asdict(self.settings.hooks or Hooks())
        fields["remove"] = strategy(fields["remove"])
        if self.settings.mode != "unset":
            fields["save_async"] = self.settings.mode != "sync"
        return fields

    def count(self, step: int, tokens_seen: int) -> None:
        """Tell the run where the training is, unless it finds that out itself."""

    def pre_train(self) -> None:
        self.count(self.training.step, self.training.tokens_seen)
        self.callback.pre_train()

    def post_train_batch(self) -> None:
        self.count(self.training.step, self.training.tokens_seen)
        self.callback.post_train_batch()

    def post_train(self) -> None:
        self.callback.post_train()

    def block_ephemeral(self, is_blocked: bool) -> None:
        self.run.block_ephemeral_checkpoints = is_blocked

    def checkpoint_pending(self) -> bool:
        return bool(self.callback.checkpoint_pending)

    def save(self, step: int, tokens_seen: int, extra: Mapping[str, Any] | None, parts: Sequence[str]) -> None:
        self.wait()
        self.count(step, tokens_seen)
        self.run.extra = dict(extra or {})
        if self.settings.mode == "sync":
            self.run.save_checkpoint()
        else:
            _, self.future = self.run.save_checkpoint_async()

    def wait(self) -> None:
        future, self.future = self.future, None
        if future is not None:
            future.result()
