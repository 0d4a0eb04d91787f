"""The words of this specification, each with its one meaning here.

Invariant: no clause uses a word of `not_used`, in its sentence, its reason or its situation.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Term:
    """A word or phrase, its meaning, and the words that are not used in its place."""

    name: str
    meaning: str
    not_used: tuple[str, ...] = ()
    not_used_except: str = ""
    """Where the last word of `not_used` stands all the same, because names have it."""


RUN = (
    Term("run", "One training, from its first step to its last, over all its restarts.", ("life", "lives")),
    Term(
        "process", "One process of the operating system that trains and calls the manager. A restart begins a new one."
    ),
    Term("rank", "One of the processes that train together, and its number. Rank 0 is the first."),
    Term("stage", "A pipeline stage: the ranks that hold the same layers of the model."),
    Term("caller", "The script or framework that calls the manager."),
    Term("reader", "Whatever looks at the folder without the manager: a resume, another process, a tool."),
    Term("step", "The training counter. Each save is a save of one step."),
    Term("tokens seen", "A second counter that the caller passes to a save, and that a load returns beside the step."),
    Term(
        "kill",
        "The end of a process by SIGKILL, at any instant. Everything that it had written is in the folder.",
    ),
    Term("loss of power", "The end of all processes at once. What had not reached storage may be missing afterwards."),
    Term("death", "A kill or a loss of power; in the command `crash` also an exit or a stop of a process in its work."),
    Term("interrupt", "SIGINT in the middle of a call. The process goes on if its script catches it."),
)

SAVING = (
    Term("save", "A call of `save`, and everything that it starts, until it is committed or has failed."),
    Term("dispatch", "To start the flush of an asynchronous save."),
    Term("flush", "The part of an asynchronous save that writes files while training goes on."),
    Term(
        "in flight",
        "Said of a save that was dispatched and is neither committed nor failed.",
        ("outstanding", "pending"),
        "in the names of the hooks' API",
    ),
    Term(
        "commit",
        "The instant from which a save counts: the checkpoint is complete and `latest` names it. For a manager without "
        "a pointer, the instant at which it becomes complete.",
    ),
    Term(
        "acknowledged",
        "Said of a save whose commit a call has promised by returning: a synchronous `save` for its own step, an "
        "asynchronous `save` for the save before it, `wait` and `flush_pending_save` for the save in flight.",
        ("vouched", "vouches", "vouch"),
    ),
    Term("emergency save", "A save that the script makes because it is about to end, often at a step saved before."),
    Term("save again", "To save a step whose directory exists already."),
)

FOLDER = (
    Term("folder", "The directory in which a run keeps its checkpoints. `step_N` is a directory in it."),
    Term("checkpoint", "What the folder holds of one step."),
    Term("shared layout", "The layout of the chapter `layout`, which managers of different authors can share."),
    Term("shard", "A file with one rank's part of model and optimizer."),
    Term(
        "marker",
        "The file that is written when all shards are there: `.metadata` of DCP (torch.distributed.checkpoint).",
    ),
    Term(
        "train state",
        "`train_state.pt`: step, tokens seen, scheduler, loader position, random states, and the caller's extra.",
    ),
    Term("extra", "A dictionary that the caller passes to a save, and that a load returns."),
    Term("pointer", "`latest`: a symlink that names the checkpoint that was committed last."),
    Term(
        "complete",
        "Said of a checkpoint with every file that its layout requires: in the shared layout its markers, "
        "`train_state.pt` and `metadata.json`.",
    ),
    Term("torn", "Said of a step's directory that is not complete, as a kill in the middle of a save leaves it."),
    Term(
        "leftovers",
        "What killed or failed saves and deletions leave: torn directories, and files under other names.",
        ("debris", "rubbish"),
    ),
    Term("mixture", "A checkpoint whose files come from more than one save."),
    Term("on storage", "Said of bytes and names that no loss of power takes away any more."),
    Term("milestone", "A step on which the strategy of its window fires. Every other step is *ordinary*."),
    Term(
        "limit",
        "`keep_last_n`: how many ordinary checkpoints are kept. 0 or less keeps all. For hooks: `max_checkpoints`.",
    ),
    Term(
        "delete",
        "To remove a checkpoint from the folder because it is beyond the limit.",
        ("prune", "prunes", "pruned", "pruning", "sweep", "sweeps", "swept"),
    ),
)

HOOKS = (
    Term("hook", "A call of the training loop in which a manager decides by itself what to save and what to remove."),
    Term("permanent", "Said of a checkpoint of hooks that stays, up to `max_checkpoints` if that is given."),
    Term("ephemeral", "Said of a checkpoint of hooks that is removed when the next ephemeral one is complete."),
    Term("collect", "To treat what an earlier process left as an old ephemeral checkpoint."),
    Term("remove", "What hooks do to a checkpoint that is replaced, collected, or beyond `max_checkpoints`."),
)

RESUMING = (
    Term("load", "A call of `load`."),
    Term("resume", "A load in a new process, after which training goes on."),
    Term("auto-resume", "A load for which neither the call nor `load_path` names a checkpoint."),
    Term("resume point", "The checkpoint that an auto-resume would land on now."),
    Term("land on", "To load the state of a step and return that step."),
    Term(
        "restore",
        "To put state back as it was saved.",
        ("brings back", "brought back", "comes back", "come back", "came back"),
    ),
    Term("exact", "Bit for bit: every value restored has the bits that were saved."),
    Term("fall back", "To land on another checkpoint because the one that `latest` names is not complete."),
    Term("fresh start", "A load that changes nothing and returns step 0, because there is nothing to load."),
    Term(
        "rewind",
        "A resume from an older checkpoint that the caller names; the next saves are of lower steps.",
    ),
    Term("refuse", "To raise an error before anything is changed: nothing in the folder, and no live object."),
    Term("live object", "Model, optimizer, scheduler, loader and random number generators of the process."),
    Term(
        "raise, warn",
        "To raise is to end a call with an exception. To warn is to log a record of level WARNING or above, or to "
        "issue a Python warning.",
        ("told", "tells", "telling", "unsaid"),
    ),
)

JUDGING = (
    Term("clause", "One requirement, with a slug that never changes."),
    Term("situation", "What has to happen before a clause is judged; a clause is *reached* when it has happened."),
    Term("verdict", "What a report says about a clause: pass, fail, expected-fail, unreached, unclaimed or error."),
    Term("claim", "The level and the capabilities that a manager is judged by."),
    Term("predicate", "A function of this specification that decides a clause from plain data."),
    Term("vector", "A question about a manager with its one right answer, as JSON. A *corner* was answered by hand."),
    Term("mutant", "A manager with one mistake. The suite has to fail it, by the clause that is about the mistake."),
    Term("fail", "Said of a clause that does not hold for a manager, and of a save that raises.", ("fell", "fallen")),
)

GROUPS: dict[str, tuple[Term, ...]] = {
    "The run": RUN,
    "Saving": SAVING,
    "The folder": FOLDER,
    "Resuming": RESUMING,
    "Hooks": HOOKS,
    "Judging": JUDGING,
}
"""The terms by topic, in the order in which a checkpoint meets them."""

TERMS: tuple[Term, ...] = tuple(term for group in GROUPS.values() for term in group)

PLAIN: tuple[str, ...] = ("falls", "in earnest", "forever", "for ever", "thereby", "whatsoever")
"""Words that stand for no term and are not used either; `falls back` is a term."""


def words_not_used(text: str) -> Iterator[str]:
    """The words in a text that this specification does not use; code in backticks is not text.

    >>> list(words_not_used("prunes what fell back; `prune` falls back, and falls"))
    ['prunes', 'falls']
    """
    text = re.sub(r"`[^`]*`", "``", text)
    text = re.sub(r"\b(falls?|fell|fallen) back\b", "", text, flags=re.IGNORECASE)
    for word in [*(word for term in TERMS for word in term.not_used), *PLAIN]:
        yield from re.findall(rf"\b{re.escape(word)}\b", text, flags=re.IGNORECASE)
