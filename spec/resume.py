"""How a run goes on after a restart: from one checkpoint, complete, with every bit of state that was saved.

A load goes to the path named in the call, or else to the configured `load_path`. It then loads exactly that checkpoint,
and never falls back. A load without either is an *auto-resume*. It goes to the target of `latest`; if that is torn, it
falls back to the newest complete checkpoint; and if there is none, it starts fresh.

Invariants: whatever happened before, an auto-resume needs no person; all ranks land on the same step; all state comes
from that one step, or nothing changes at all if the load is refused; and a resumed run can't be told from one that was
never interrupted.
"""

from collections.abc import Collection
from dataclasses import dataclass

from forge_spec.clauses import Clause, Level

_POINTER = frozenset({"pointer"})
_EXPLICIT = frozenset({"explicit"})
_TRAIN_STATE = frozenset({"train-state"})
_DATALOADER = frozenset({"dataloader"})

CLAUSES: tuple[Clause, ...] = (
    Clause(
        slug="resume.lands",
        level=Level.CORE,
        sentence="lands, in an auto-resume of a new process or of the one that saved, on the last save that was "
        "completed",
        why="Whatever else holds, a checkpoint that no resume lands on was written for nothing.",
        situation="a save was completed, and a new process resumed, or the same process did",
        rests_on=("commit.sync", "commit.no-later-than"),
        predicates=("may_land_on",),
    ),
    Clause(
        slug="resume.after-kill",
        level=Level.CORE,
        sentence="lands, after a kill at any instant of saving a new step, on the last acknowledged step or on one "
        "that was in flight. It lands on no older step, on no newer step, and on no mixture",
        why="Jobs end by a kill more often than by a return. Landing on an older step costs training, and a mixture "
        "costs the run.",
        situation="a save was killed at each of its file operations, and a new process resumed",
        rests_on=("resume.lands",),
        predicates=("after_kill",),
    ),
    Clause(
        slug="resume.order",
        level=Level.CORE,
        sentence="loads the path named in the call, or else `load_path`, or else the target of `latest`, or else "
        "starts fresh",
        why="A wrong order loads a checkpoint that nobody asked for. Fine-tuning starts from an old run, or a "
        "requeued run from its base model.",
        situation="loads were asked for with each source present while the later ones named something else",
        capabilities=frozenset({"explicit", "pointer"}),
        rests_on=("resume.lands",),
        predicates=("resolve",),
    ),
    Clause(
        slug="resume.fresh",
        level=Level.CORE,
        sentence="with nothing to load returns step 0, 0 tokens and an empty extra, and changes no live object",
        why="Every run begins with such a load. If it raises, no run starts. If it changes the model, the run starts "
        "from something other than its initialisation.",
        situation="an auto-resume was asked for in an empty folder and in one that does not exist",
        predicates=("resolve",),
    ),
    Clause(
        slug="resume.fallback",
        level=Level.CORE,
        sentence="lands, in an auto-resume, on the newest complete checkpoint if the target of `latest` lacks its "
        "marker, and warns, naming both",
        why="A run that does not fall back crashes at every restart beside good checkpoints. Without the warning "
        "nobody learns that training was lost.",
        situation="`latest` named a torn directory beside complete checkpoints",
        capabilities=_POINTER,
        rests_on=("resume.lands",),
        predicates=("may_land_on",),
    ),
    Clause(
        slug="resume.skips-torn",
        level=Level.CORE,
        sentence="lands, in an auto-resume, on a complete checkpoint, whatever torn ones are beside it, newer or older",
        why="The usual kill comes in the middle of a save and leaves the newest directory torn. A manager that loads "
        "the newest directory crashes at every restart.",
        situation="a torn directory newer than the last completed save, and an older one, were in the folder",
        rests_on=("resume.lands",),
        predicates=("may_land_on",),
    ),
    Clause(
        slug="resume.all-torn",
        level=Level.STRICT,
        sentence="starts fresh when the folder has only torn directories, warns, listing them, and deletes none of "
        "them",
        why="A run that was killed in its first save would crash at every restart until a person cleans up.",
        situation="an auto-resume was asked for in a folder with nothing but torn directories",
        rests_on=("resume.fresh",),
        predicates=("may_land_on",),
    ),
    Clause(
        slug="resume.pointer-is-a-hint",
        level=Level.STRICT,
        sentence="finds, in an auto-resume, the newest complete checkpoint when `latest` is missing, is dangling, "
        "names itself or leads out of the folder",
        why="Copy tools drop or break symlinks. A silent fresh start would then run beside every checkpoint of the "
        "run, and delete them one by one.",
        situation="`latest` was removed or broken in each of these ways beside complete checkpoints",
        capabilities=_POINTER,
        rests_on=("resume.lands",),
        predicates=("may_land_on",),
    ),
    Clause(
        slug="resume.explicit-honoured",
        level=Level.CORE,
        sentence="loads a checkpoint that the caller names, or raises; it never lands on another",
        why="An evaluation of step 5000 that quietly measures step 9000 is published as step 5000.",
        situation="a complete and a torn checkpoint were named while another one was the resume point",
        capabilities=_EXPLICIT,
        rests_on=("resume.exact",),
        predicates=("resolve",),
    ),
    Clause(
        slug="resume.explicit-missing",
        level=Level.STRICT,
        sentence="raises an error that names the path when a path in the call or in `load_path` does not exist",
        why="With a typing error the run starts from scratch under the name of a continuation, and that is noticed "
        "when the loss is.",
        situation="a path that does not exist was named, in the call and in `load_path`",
        capabilities=_EXPLICIT,
    ),
    Clause(
        slug="resume.imported-weights",
        level=Level.CORE,
        sentence="loads the weights of a named directory that has shards and no `train_state.pt`, and returns step 0, "
        "0 tokens and an empty extra",
        why="Weights that were converted from elsewhere have no train state. A run that can't start from them has to "
        "forge one.",
        situation="a directory without `train_state.pt` was named",
        capabilities=frozenset({"explicit", "layout", "train-state"}),
        rests_on=("resume.explicit-honoured",),
    ),
    Clause(
        slug="resume.no-fallback-without-dcp",
        level=Level.CORE,
        sentence="loads the target of `latest` when model and optimizer are both excluded, even if that lacks its "
        "marker",
        why="Such a load reads only the train state, which is there. If it fell back, it would return the counters of "
        "an older step.",
        situation="model and optimizer were excluded while `latest` named a directory without a marker",
        capabilities=frozenset({"exclude", "pointer", "train-state", "layout"}),
        rests_on=("resume.exclude",),
        predicates=("resolve",),
    ),
    Clause(
        slug="resume.peek-agrees",
        level=Level.STRICT,
        sentence="returns from `peek_saved_step` the step that a load then lands on, also when that falls back, and "
        "None where the load starts fresh",
        why="The run prepares for the step that it was given. Its data phase and freeze list would be those of "
        "another step.",
        situation="peek and load were asked for with `latest` intact, with its target torn, and with nothing to load",
        capabilities=frozenset({"peek"}),
        rests_on=("resume.lands",),
        predicates=("resolve",),
    ),
    Clause(
        slug="resume.continue",
        level=Level.STRICT,
        sentence="goes on saving after it fell back or after a kill, over the leftovers and at the same steps too, "
        "and the next auto-resume lands on the new saves",
        why="If a torn directory blocks the save of its step, that step can never be passed. The run repeats the same "
        "stretch at every restart, or trains on without a checkpoint.",
        situation="a run that had resumed beside a torn directory saved that same step, and later ones",
        rests_on=("resume.lands",),
    ),
    Clause(
        slug="resume.one-step",
        level=Level.CORE,
        sentence="takes weights, optimizer state, train state and metadata all from the same step",
        why="Weights of one step with moments or counters of another train on, to a result that nobody can reproduce "
        "or explain.",
        situation="a load chose among several checkpoints that differ in every part",
        rests_on=("resume.lands", "resume.exact"),
    ),
    Clause(
        slug="resume.exact",
        level=Level.CORE,
        sentence="restores parameters, buffers, every moment and counter of the optimizer, and a scheduler that was "
        "passed with them, bit for bit. It does not change which parameters are trained. The losses are then "
        "those of a run that was never interrupted",
        why="A moment that is lost or rounded shows as a bump in the loss, or does not show and changes the rest of "
        "the run.",
        situation="a run was interrupted after its optimizer had stepped, resumed in a new process and trained on",
        rests_on=("resume.lands", "resume.moments", "resume.rng", "resume.dataloader", "resume.train-state"),
    ),
    Clause(
        slug="resume.moments",
        level=Level.CORE,
        sentence="restores the moments into a freshly built optimizer that has never stepped",
        why="Such an optimizer has no state yet. Used as the template of the load, it asks for nothing and gets "
        "nothing, and the run warms up again from zero moments.",
        situation="a checkpoint with non-zero moments was loaded into an optimizer that had never stepped",
        rests_on=("resume.lands",),
    ),
    Clause(
        slug="resume.every-kind",
        level=Level.STRICT,
        sentence="restores the state of optimizer, scheduler and modules as it was, whatever it consists of, or "
        "refuses it at the save, naming it. State may be numbers, text, None, tuples, nested and empty dicts, keys "
        "that are numbers, and state under names. It may be settings of each group, also tensors, extra state, buffers "
        "that grow, and layers without a shape yet. It may be tensors of other classes, moments in another precision "
        "than their parameter, and schedulers that another scheduler holds. Buffers that are not persistent are left "
        "alone",
        why="A format that knows only tensors under text keys turns numbers into text and drops what is empty. The "
        "optimizer goes on with another state, or no load ever accepts the checkpoint.",
        situation="a run with each of these was saved, resumed in a new process and trained on",
        rests_on=("resume.exact",),
    ),
    Clause(
        slug="resume.train-state",
        level=Level.CORE,
        sentence="returns the step and the tokens seen that were given to the save",
        why="If they are off by one, the run repeats or skips a batch, and schedule and checkpoints shift against the "
        "data.",
        situation="a save with its own step and token count was resumed",
        capabilities=_TRAIN_STATE,
        rests_on=("resume.lands",),
    ),
    Clause(
        slug="resume.extra",
        level=Level.CORE,
        sentence="returns the caller's extra equal to what was saved, including values that are false and tensors, and "
        "nothing else",
        why="The caller keeps there what only it knows, such as the phase of its data. If that is lost, the run "
        "begins the wrong phase.",
        situation="saves with an extra of several types and with none were resumed",
        capabilities=_TRAIN_STATE,
        rests_on=("resume.lands",),
    ),
    Clause(
        slug="resume.reserved-extra",
        level=Level.STRICT,
        sentence="refuses at the save, naming the key, an extra that uses a key of the train state itself",
        why="`extra={'step': 999}` makes the run resume at step 999 with the weights of another step.",
        situation="a save was asked for with `step` in its extra",
        capabilities=_TRAIN_STATE,
        predicates=("RESERVED",),
    ),
    Clause(
        slug="resume.rng",
        level=Level.CORE,
        sentence="restores the random number generators of Python, numpy and torch, and of the accelerator where "
        "there is one, bit for bit",
        why="Dropout and augmentation draw other numbers, and the resumed run is another run.",
        situation="the generators were advanced before the save and elsewhere before the load",
        capabilities=frozenset({"rng"}),
        rests_on=("resume.lands",),
    ),
    Clause(
        slug="resume.dataloader",
        level=Level.CORE,
        sentence="puts a stateful data loader that is passed to the load back to the position it was saved at",
        why="From the start of the epoch the model sees the same data twice and the rest never.",
        situation="a loader was saved in the middle of an epoch and passed to a load",
        capabilities=_DATALOADER,
        rests_on=("resume.lands",),
    ),
    Clause(
        slug="resume.dataloader-stash",
        level=Level.CORE,
        sentence="keeps the loader's state when no loader is passed to the load, applies it once at "
        "`apply_dataloader_state`, and drops it quietly if that loader has no `load_state_dict`",
        why="The loader is often built from what the load returned. Applied twice, the state sets a later epoch back.",
        situation="a loader was passed after the load, a second one after that, and one without `load_state_dict` in "
        "another run",
        capabilities=_DATALOADER | {"loader-later"},
        rests_on=("resume.lands",),
    ),
    Clause(
        slug="resume.exclude",
        level=Level.CORE,
        sentence="leaves what is excluded from a load untouched and loads the rest, whether it is excluded in the "
        "call or by `exclude_from_loading`",
        why="Fine-tuning excludes the optimizer on purpose: old moments do not fit the new learning rate.",
        situation="the optimizer was excluded, once in the call and once in the configuration",
        capabilities=frozenset({"exclude"}),
        rests_on=("resume.lands", "resume.exact"),
    ),
    Clause(
        slug="resume.exclude-prefix",
        level=Level.STRICT,
        sentence="leaves parameters and buffers untouched that a load excludes by name, or by the beginning of their "
        "names up to a dot, and the moments of those parameters. It loads the rest, and refuses a name that is "
        "neither a part of the state nor in the model",
        why="Fine-tuning keeps a new head and its moments while the rest is loaded. If a name with a typing error is "
        "ignored, the head is overwritten.",
        situation="a layer was excluded in the call and in the configuration, and a name that the model does not have",
        capabilities=frozenset({"exclude", "partial"}),
        rests_on=("resume.exclude",),
        predicates=("untouched", "unknown"),
    ),
    Clause(
        slug="resume.surplus",
        level=Level.STRICT,
        sentence="leaves out a parameter that the model no longer has, with its value and its moments, warns, naming "
        "it, and loads the rest",
        why="Otherwise a head that was removed makes every earlier checkpoint useless, or its state is dropped and "
        "nobody knows.",
        situation="a checkpoint of a model with one more layer was resumed",
        capabilities=frozenset({"partial"}),
        rests_on=("resume.lands",),
    ),
    Clause(
        slug="resume.fits",
        level=Level.STRICT,
        sentence="refuses, naming the tensor, a checkpoint that has no value for a tensor of the model, or one of "
        "another shape. It also refuses to load into a model with tensors that have no memory yet (on the device "
        "`meta`)",
        why="A load that takes what fits and ignores the rest goes on with random layers, and with all of them where "
        "every name has changed. The loss shows it days later.",
        situation="a checkpoint was resumed by a model with one more layer, by one with more outputs, and by one with "
        "a layer on the device `meta`",
        rests_on=("resume.lands",),
    ),
    Clause(
        slug="resume.other-optimizer",
        level=Level.STRICT,
        sentence="refuses, before anything changes, the state of an optimizer of another class, or with other "
        "parameter groups. If groups or parameters are in another order, each gets what belongs to it, or the load is "
        "refused as well",
        why="The state of SGD loads into AdamW, and the first step fails on a missing key; or the settings of one "
        "group are applied to the parameters of another; or a layer gets the moments of another layer.",
        situation="checkpoints of SGD, of AdamW, and of AdamW with other groups and with the same groups in another "
        "order were resumed by one another",
        rests_on=("resume.lands",),
    ),
    Clause(
        slug="resume.all-or-nothing",
        level=Level.STRICT,
        sentence="leaves model, optimizer, scheduler and random number generators as they were when it refuses a "
        "load. Reasons for a refusal are trust, the freeze list, an unreadable train state, another model, a tensor "
        "that can't be written to, and a loader that does not take its position",
        why="A caller that catches the error trains on with half a checkpoint.",
        situation="a load was refused after it could have read some of the state",
        capabilities=_TRAIN_STATE,
    ),
    Clause(
        slug="resume.code-that-raises",
        level=Level.STRICT,
        sentence="leaves model, optimizer, scheduler, random number generators, and a loader that reports its "
        "position, as they were when code of the run raises in the middle of a load. Such code is the method by which "
        "a module, an optimizer, a scheduler or a loader takes its state. Training goes on as if nothing had been "
        "loaded",
        why="Such code opens files and checks versions, and it runs when half of the checkpoint is loaded. A caller "
        "that catches the error trains on with that half, or with a scheduler that changes the learning rate of a "
        "copy.",
        situation="a module, an optimizer, a scheduler, a scheduler that holds another, and a loader raised when they "
        "had taken their state, and training went on after the refused load",
        capabilities=_TRAIN_STATE,
        rests_on=("resume.all-or-nothing",),
    ),
    Clause(
        slug="resume.damage",
        level=Level.STRICT,
        sentence="raises an error that names the file when a shard is truncated or has a flipped bit",
        why="Wrong weights load without an error, and all that is trained on them is lost when somebody finds out.",
        situation="a checkpoint was resumed with a shard cut short, and with a bit flipped inside its tensors",
        rests_on=("resume.lands",),
    ),
    Clause(
        slug="resume.one-save",
        level=Level.STRICT,
        sentence="refuses, naming the file, a checkpoint in which a file is of another step, or of another save of "
        "the same step; or falls back with a warning that names the file. The file may be a shard, the marker, "
        "`train_state.pt` or `metadata.json`. A `metadata.json` that was replaced by one without checksums is refused "
        "in the same way, if the manager wrote some",
        why="A copy that went to the wrong place puts weights of step 5 beside the scheduler, the random states and "
        "the counters of step 7. Each file is intact, so no checksum inside one detects it.",
        situation="each of these files was replaced by that of another step, and by that of an earlier save of the "
        "step; the metadata was replaced by one that records only step and tokens",
        capabilities=frozenset({"layout", "train-state"}),
        rests_on=("resume.lands",),
    ),
    Clause(
        slug="resume.named-by-its-step",
        level=Level.STRICT,
        sentence="refuses a directory `step_N` that holds the checkpoint of another step, naming the directory, or "
        "falls back with a warning that names it; and loads a copy that is named under a name that is not a step's",
        why="A copy of step 5 that was given the name of step 7 is resumed as the newest, and two steps of training "
        "are lost without a word.",
        situation="a checkpoint was copied to the name of another step, which `latest` named, and to another name",
        capabilities=frozenset({"layout", "train-state"}),
        rests_on=("resume.lands",),
    ),
    Clause(
        slug="resume.intact",
        level=Level.STRICT,
        sentence="restores exactly what was saved when one bit of any file of a checkpoint is flipped, or names that "
        "file in an error or a warning. The same holds for `peek_saved_step` and for the comparison of freeze lists",
        why="A flipped digit sends the run to another step, or a flipped letter disables the comparison of freeze "
        "lists, and the file still looks like any other.",
        situation="bits all over each file of a checkpoint were flipped, one at a time, and it was resumed each time",
        capabilities=frozenset({"layout", "train-state"}),
        rests_on=("resume.lands", "resume.damage"),
    ),
    Clause(
        slug="resume.agreement",
        level=Level.CORE,
        sentence="takes the same branch and lands on the same step on all ranks, even where their views of the folder "
        "differ",
        why="On a shared file system one rank sees a file a second later than another. They load different steps, or "
        "wait for each other in different collectives.",
        situation="ranks resumed while one of them could not see the newest checkpoint or its train state",
        capabilities=frozenset({"distributed"}),
        rests_on=("resume.lands",),
    ),
    Clause(
        slug="resume.agreement-across-stages",
        level=Level.STRICT,
        sentence="lands on the same step in all pipeline stages, one at which every stage is complete",
        why="If each stage falls back by itself, the first half of the model resumes at step 20 and the second at "
        "step 10.",
        situation="the newest step was complete for one stage and torn for another",
        capabilities=frozenset({"distributed", "pipeline"}),
        rests_on=("resume.agreement",),
        predicates=("may_land_on",),
    ),
    Clause(
        slug="resume.stages-fit",
        level=Level.STRICT,
        sentence="refuses on every rank, before anything changes, a named checkpoint whose pipeline stages are not "
        "those of the run. Either a stage is missing, or their number differs, or one of them is of another step",
        why="A stage that finds nothing keeps its random weights, or loads those of another step. The model that "
        "results was never trained.",
        situation="checkpoints with one stage too few, with no stages, with stages for a run without, and with a "
        "stage of another step were named",
        capabilities=frozenset({"distributed", "pipeline", "explicit"}),
        rests_on=("resume.error-everywhere",),
    ),
    Clause(
        slug="resume.rank-values",
        level=Level.STRICT,
        sentence="restores to each rank its own values of unsharded buffers and of extra state, where they differ "
        "from rank to rank, or refuses them at the save, naming one",
        why="Statistics of each rank's own data would be replaced by rank 0's on all ranks, and the run of every rank "
        "changes.",
        situation="ranks with different values under one name saved and resumed",
        capabilities=frozenset({"distributed"}),
        rests_on=("resume.exact", "resume.rng-per-rank"),
    ),
    Clause(
        slug="resume.rng-per-rank",
        level=Level.STRICT,
        sentence="restores to each rank its own random number generators",
        why="With rank 0's generators on all ranks, every rank draws the same dropout and the same augmentation. The "
        "effective batch shrinks, and no message says so.",
        situation="ranks with different random states saved and resumed",
        capabilities=frozenset({"rng", "distributed"}),
        rests_on=("resume.rng",),
    ),
    Clause(
        slug="resume.reshard",
        level=Level.CORE,
        sentence="restores on M ranks the same full values that N ranks saved",
        why="Otherwise a node that is lost or added makes every checkpoint of the run useless.",
        situation="a checkpoint was loaded on more ranks and on fewer than had saved it",
        capabilities=frozenset({"distributed", "reshard"}),
        rests_on=("resume.lands",),
    ),
    Clause(
        slug="resume.error-everywhere",
        level=Level.STRICT,
        sentence="raises promptly on every rank an error of the rank that reads",
        why="The others wait in a broadcast until the timeout. Each attempt costs half an hour of the whole "
        "allocation, and the log blames the network.",
        situation="a load failed on one rank out of several",
        capabilities=frozenset({"distributed"}),
    ),
    Clause(
        slug="resume.refused-by-all",
        level=Level.STRICT,
        sentence="raises on every rank, and leaves all of them as they were, when one rank fails to put the values in",
        why="The ranks have agreed that everything was read, and do not ask again. One raises, the others return "
        "success, and the run goes on with weights of two steps or hangs in its next collective.",
        situation="code of the run raised on each rank in turn in the middle of a load",
        capabilities=frozenset({"distributed", "train-state"}),
        rests_on=("resume.error-everywhere", "resume.code-that-raises"),
    ),
)

# The titles of the sections, each under its first clause.
SECTIONS: dict[str, str] = {
    "resume.lands": "Where a load lands",
    "resume.one-step": "What is restored",
    "resume.exclude": "What a load leaves alone",
    "resume.fits": "Which loads are refused",
    "resume.damage": "Damaged files",
    "resume.agreement": "Several ranks",
}


RESERVED = frozenset({"step", "tokens_seen", "scheduler", "dataloader", "rng"})
"""The keys of the train state itself, which the caller's extra must not use."""


@dataclass(frozen=True)
class Fresh:
    """The run starts from its initialisation."""


@dataclass(frozen=True)
class Step:
    """An auto-resume landed on the checkpoint of this step."""

    step: int


@dataclass(frozen=True)
class Named:
    """The caller named this path. It is loaded, or an error is raised."""

    path: str


Outcome = Fresh | Step | Named


def may_land_on(complete: frozenset[int], latest: int | None) -> frozenset[int | None]:
    """Return the steps on which an auto-resume may land; None stands for a fresh start.

    `latest` is the step that the pointer names, or None if there is no pointer or it names no step of the folder.

    >>> may_land_on(complete=frozenset({10, 20}), latest=10)
    frozenset({10})

    A torn target and a missing pointer both lead to the newest complete checkpoint:

    >>> may_land_on(complete=frozenset({10, 20}), latest=30)
    frozenset({20})
    >>> may_land_on(complete=frozenset({10, 20}), latest=None)
    frozenset({20})
    >>> may_land_on(complete=frozenset(), latest=30)
    frozenset({None})
    """
    if latest in complete:
        return frozenset({latest})
    return frozenset({max(complete, default=None)})


def resolve(
    explicit: str | None,
    load_path: str | None,
    complete: frozenset[int],
    latest: int | None,
    reads_shards: bool = True,
) -> Outcome:
    """Return what a load does.

    `explicit` is the path named in the call. A load that excludes both model and optimizer reads no shards
    (`reads_shards`), and goes to the pointer's target even if that is torn.

    >>> resolve("a/step_5", "b/step_6", frozenset({7}), latest=7)
    Named(path='a/step_5')
    >>> resolve(None, "b/step_6", frozenset({7}), latest=7)
    Named(path='b/step_6')
    >>> resolve(None, None, frozenset({7}), latest=7)
    Step(step=7)
    >>> resolve(None, None, frozenset(), latest=None)
    Fresh()
    >>> resolve(None, None, frozenset({7}), latest=9), resolve(None, None, frozenset({7}), latest=9, reads_shards=False)
    (Step(step=7), Step(step=9))
    """
    named = explicit if explicit is not None else load_path
    if named is not None:
        return Named(named)
    if latest is not None and not reads_shards:
        return Step(latest)
    (landing,) = may_land_on(complete, latest)
    return Fresh() if landing is None else Step(landing)


PARTS = ("model", "optimizer", "scheduler", "dataloader", "rng")
"""The parts of the state that a load can exclude as a whole."""


def is_below(name: str, excluded: str) -> bool:
    """Return whether a name in the model is the excluded name, or begins with it up to a dot.

    >>> is_below("layers.1.weight", "layers.1"), is_below("layers.1.weight", "layers."), is_below("head", "head")
    (True, True, True)
    >>> is_below("layers.10.weight", "layers.1"), is_below("layers.1.weight", "layers.1.w")
    (False, False)
    """
    return f"{name}.".startswith(f"{excluded.removesuffix('.')}.")


def untouched(names: Collection[str], exclude: Collection[str]) -> frozenset[str]:
    """Return the names in the model that a load with these exclusions leaves as they are.

    >>> sorted(untouched(["head.bias", "head.weight", "tail.weight"], ["head."]))
    ['head.bias', 'head.weight']
    >>> sorted(untouched(["head.weight", "tail.weight"], ["model", "rng"]))
    ['head.weight', 'tail.weight']
    """
    if "model" in exclude:
        return frozenset(names)
    prefixes = frozenset(exclude).difference(PARTS)
    return frozenset(name for name in names if any(is_below(name, prefix) for prefix in prefixes))


def unknown(names: Collection[str], exclude: Collection[str]) -> frozenset[str]:
    """Return the exclusions that a load has to refuse: neither a part of the state, nor above a name in the model.

    >>> sorted(unknown(["head.weight"], ["head", "hea", "rng", "optimiser"]))
    ['hea', 'optimiser']
    """
    prefixes = frozenset(exclude).difference(PARTS)
    return frozenset(prefix for prefix in prefixes if not any(is_below(name, prefix) for name in names))


def after_kill(
    acknowledged: int | None, in_flight: int | None, dispatching: int | None = None
) -> frozenset[int | None]:
    """Return the steps on which the next auto-resume may land after a kill; None stands for a fresh start.

    `acknowledged` is the last acknowledged step, and `in_flight` the save that was dispatched after it. If the kill
    came in the call of another save, `dispatching` is its step. That call commits the save in flight, and may have
    committed its own.

    >>> sorted(after_kill(acknowledged=10, in_flight=20))
    [10, 20]
    >>> after_kill(acknowledged=10, in_flight=None)
    frozenset({10})
    >>> after_kill(acknowledged=None, in_flight=None)
    frozenset({None})
    >>> sorted(after_kill(acknowledged=10, in_flight=20, dispatching=30))
    [10, 20, 30]
    """
    return frozenset({acknowledged}) | {step for step in (in_flight, dispatching) if step is not None}
