"""How a run comes back: on one checkpoint, whole, with every bit of state that was saved.

A load goes where the caller says: to a path named in the call, then to the
configured `load_path`, and is then literal, without a fallback.  Otherwise it
is an *auto-resume*, which goes to the target of `latest`, and if that is torn
to the newest complete checkpoint, and if there is none starts fresh.

Invariants: whatever happened before, an auto-resume never needs a person; all
ranks land on the same step; everything comes from that one step or, if the load
is refused, nothing changes at all; and a resumed run can't be told from one
that was never interrupted.
"""

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
        sentence="lands, in an auto-resume of a new process, on the last save that was completed",
        why="Whatever else holds: a checkpoint that no resume comes back to was written for nothing.",
        sometimes="a save was completed and a new process resumed",
        rests_on=("commit.sync", "commit.no-later-than"),
    ),
    Clause(
        slug="resume.after-kill",
        level=Level.CORE,
        sentence="lands, after a kill at any instant of saving a new step, on the last step acknowledged as committed "
        "or on one that was in flight, and on nothing older, newer or mixed",
        why="Jobs end by kill more often than by return; each older landing costs training, "
        "and a mixture costs the run.",
        sometimes="a save was killed at each of its file operations, and a new process resumed",
        rests_on=("resume.lands",),
    ),
    Clause(
        slug="resume.order",
        level=Level.CORE,
        sentence="goes to the path named in the call, else to `load_path`, else to the target of `latest`, "
        "else starts fresh",
        why="A wrong precedence loads a checkpoint that nobody asked for: "
        "fine-tuning starts from an old run, or a requeued run from its base model.",
        sometimes="loads were asked for with each source present while the later ones pointed elsewhere",
        capabilities=frozenset({"explicit", "pointer"}),
        rests_on=("resume.lands",),
    ),
    Clause(
        slug="resume.fresh",
        level=Level.CORE,
        sentence="with nothing to load returns step 0, 0 tokens and an empty extra, and changes no live object",
        why="Every run begins with such a load: if it raises, no run starts; "
        "if it touches the model, the run starts from something else than its initialisation.",
        sometimes="an auto-resume was asked for in an empty folder and in one that does not exist",
    ),
    Clause(
        slug="resume.fallback",
        level=Level.CORE,
        sentence="lands, in an auto-resume whose `latest` target lacks its marker, on the newest complete checkpoint, "
        "and warns, naming both",
        why="Without the fallback the run crashes at every restart beside good checkpoints; "
        "without the warning nobody learns that training was lost.",
        sometimes="`latest` named a torn directory beside complete checkpoints",
        capabilities=_POINTER,
        rests_on=("resume.lands",),
    ),
    Clause(
        slug="resume.skips-torn",
        level=Level.CORE,
        sentence="lands, in an auto-resume, on a complete checkpoint whatever torn ones stand beside it, newer or "
        "older",
        why="The usual kill comes in the middle of a save and leaves the newest directory torn: "
        "a manager that takes the newest for the best crashes at every restart.",
        sometimes="a torn directory newer than the last completed save, and an older one, stood in the folder",
        rests_on=("resume.lands",),
    ),
    Clause(
        slug="resume.explicit-honoured",
        level=Level.CORE,
        sentence="loads a checkpoint that the caller names, or raises; it never lands elsewhere",
        why="An evaluation of step 5000 that quietly measures step 9000 is published as step 5000.",
        sometimes="a complete and a torn checkpoint were named while another one was the resume point",
        capabilities=_EXPLICIT,
        rests_on=("resume.exact",),
    ),
    Clause(
        slug="resume.imported-weights",
        level=Level.CORE,
        sentence="loads the weights of a named directory that has shards and no `train_state.pt`, "
        "and returns step 0, 0 tokens and an empty extra",
        why="Weights converted from elsewhere have no train state; a run that can't start from them has to forge one.",
        sometimes="a directory without `train_state.pt` was named",
        capabilities=frozenset({"explicit", "layout", "train-state"}),
        rests_on=("resume.explicit-honoured",),
    ),
    Clause(
        slug="resume.explicit-missing",
        level=Level.STRICT,
        sentence="raises an error that names the path when a path in the call or in `load_path` does not exist",
        why="A typing error starts the run from scratch under the name of a continuation, "
        "and is noticed when the loss is.",
        sometimes="a path that does not exist was named, in the call and in `load_path`",
        capabilities=_EXPLICIT,
    ),
    Clause(
        slug="resume.no-fallback-without-dcp",
        level=Level.CORE,
        sentence="stays with the target of `latest` when model and optimizer are both excluded, "
        "even if that lacks its marker",
        why="Such a load reads the train state alone, which is there; "
        "a fallback would return the counters of an older step.",
        sometimes="model and optimizer were excluded while `latest` named a directory without a marker",
        capabilities=frozenset({"exclude", "pointer", "train-state", "layout"}),
        rests_on=("resume.exclude",),
    ),
    Clause(
        slug="resume.one-step",
        level=Level.CORE,
        sentence="takes weights, optimizer state, train state and metadata all from the same step",
        why="Weights of one step with moments or counters of another train on, "
        "to a result that no one can reproduce or explain.",
        sometimes="a load chose among several checkpoints that differ in every part",
        rests_on=("resume.lands", "resume.exact"),
    ),
    Clause(
        slug="resume.pointer-is-a-hint",
        level=Level.STRICT,
        sentence="finds, in an auto-resume, the newest complete checkpoint when `latest` is missing, dangling, "
        "pointing at itself or pointing out of the folder",
        why="Copy tools drop or break symlinks: a silent fresh start then runs beside every checkpoint of the run, "
        "and prunes them as it goes.",
        sometimes="`latest` was removed or broken in each of these ways beside complete checkpoints",
        capabilities=_POINTER,
        rests_on=("resume.lands",),
    ),
    Clause(
        slug="resume.all-torn",
        level=Level.STRICT,
        sentence="starts fresh when the folder has only torn directories, warns, listing them, and deletes none of "
        "them",
        why="A run killed in its first save otherwise crashes at every restart until a person cleans up.",
        sometimes="an auto-resume was asked for in a folder with nothing but torn directories",
        rests_on=("resume.fresh",),
    ),
    Clause(
        slug="resume.peek-agrees",
        level=Level.STRICT,
        sentence="names in `peek_saved_step` the step that a load then lands on, fallback included, "
        "and None where the load starts fresh",
        why="The run prepares for the peeked step: data phase and freeze list are then those of another one.",
        sometimes="peek and load were asked for with `latest` in order, with its target torn, and with nothing to load",
        capabilities=frozenset({"peek"}),
        rests_on=("resume.lands",),
    ),
    Clause(
        slug="resume.exact",
        level=Level.CORE,
        sentence="brings parameters, buffers and every moment and counter of the optimizer back bit for bit, and a "
        "scheduler that was handed over with them, and leaves it to the run which parameters are trained, so that the "
        "losses go on as if never interrupted",
        why="A moment lost or rounded shows as a bump in the loss, or does not show and bends the rest of the run.",
        sometimes="a run was interrupted after its optimizer had stepped, resumed in a new process and trained on",
        rests_on=("resume.lands", "resume.moments", "resume.rng", "resume.dataloader", "resume.train-state"),
    ),
    Clause(
        slug="resume.moments",
        level=Level.CORE,
        sentence="brings the moments back into a freshly built optimizer that has never stepped",
        why="Such an optimizer has no state yet: taken as the template of the load, it asks for nothing and gets "
        "nothing, "
        "and the run warms up again from zero moments.",
        sometimes="a checkpoint with non-zero moments was loaded into an optimizer that had never stepped",
        rests_on=("resume.lands",),
    ),
    Clause(
        slug="resume.train-state",
        level=Level.CORE,
        sentence="returns the step and the tokens seen that were given to the save",
        why="Off by one, the run repeats or skips a batch, and schedule and checkpoints shift against the data.",
        sometimes="a save with its own step and token count was resumed",
        capabilities=_TRAIN_STATE,
        rests_on=("resume.lands",),
    ),
    Clause(
        slug="resume.rng",
        level=Level.CORE,
        sentence="brings the random streams of python, numpy and torch, and of the accelerator where there is one, "
        "back bit for bit",
        why="Dropout and augmentation draw other numbers, and the resumed run is another run.",
        sometimes="the streams were advanced before the save and elsewhere before the load",
        capabilities=frozenset({"rng"}),
        rests_on=("resume.lands",),
    ),
    Clause(
        slug="resume.rng-per-rank",
        level=Level.STRICT,
        sentence="brings each rank's own random streams back to that rank",
        why="With rank 0's streams on all of them, every rank draws the same dropout and the same augmentation: "
        "the effective batch shrinks, and nothing says so.",
        sometimes="ranks with different streams saved and resumed",
        capabilities=frozenset({"rng", "distributed"}),
        rests_on=("resume.rng",),
    ),
    Clause(
        slug="resume.exclude",
        level=Level.CORE,
        sentence="leaves what is excluded from a load untouched and loads the rest, "
        "whether it is excluded in the call or by `exclude_from_loading`",
        why="Fine-tuning leaves the optimizer out on purpose: old moments overrun the new learning rate.",
        sometimes="the optimizer was excluded, once in the call and once in the configuration",
        capabilities=frozenset({"exclude"}),
        rests_on=("resume.lands", "resume.exact"),
    ),
    Clause(
        slug="resume.extra",
        level=Level.CORE,
        sentence="returns the caller's extra equal to what was saved, and nothing besides",
        why="The caller keeps there what only it knows, such as the phase of its data: lost, the run begins the "
        "wrong one.",
        sometimes="saves with an extra of several types and with none were resumed",
        capabilities=_TRAIN_STATE,
        rests_on=("resume.lands",),
    ),
    Clause(
        slug="resume.reserved-extra",
        level=Level.STRICT,
        sentence="refuses at the time of the save, naming the key, an extra that uses a key of the train state's own",
        why="`extra={'step': 999}` makes the run resume at step 999 with the weights of another step.",
        sometimes="a save was asked for with `step` in its extra",
        capabilities=_TRAIN_STATE,
    ),
    Clause(
        slug="resume.dataloader",
        level=Level.CORE,
        sentence="puts a stateful loader that is handed to the load back to the position it was saved at",
        why="From the start of the epoch the model sees the same data twice and the rest never.",
        sometimes="a loader was saved in the middle of an epoch and handed to a load",
        capabilities=_DATALOADER,
        rests_on=("resume.lands",),
    ),
    Clause(
        slug="resume.dataloader-stash",
        level=Level.CORE,
        sentence="keeps the loader's state when the load has no loader at hand, applies it once at "
        "`apply_dataloader_state`, and drops it quietly if that loader has no `load_state_dict`",
        why="The loader is often built from what the load returned; applied twice, "
        "the state throws a later epoch back.",
        sometimes="a loader was handed over after the load, a second one after that, "
        "and one without `load_state_dict` in another run",
        capabilities=_DATALOADER,
        rests_on=("resume.lands",),
    ),
    Clause(
        slug="resume.agreement",
        level=Level.CORE,
        sentence="takes the same branch and lands on the same step on all ranks, even where their views of the folder "
        "differ",
        why="On a shared file system one rank sees a file a second later than another: "
        "they load different steps, or wait for each other in different collectives.",
        sometimes="ranks resumed while one of them could not see the newest checkpoint or its train state",
        capabilities=frozenset({"distributed"}),
        rests_on=("resume.lands",),
    ),
    Clause(
        slug="resume.agreement-across-stages",
        level=Level.STRICT,
        sentence="lands on the same step in all pipeline stages, one at which every stage is complete",
        why="Each stage falls back for itself, and the first half of the model resumes at step 20 "
        "with the second at step 10.",
        sometimes="the newest step was complete for one stage and torn for another",
        capabilities=frozenset({"distributed", "pipeline"}),
        rests_on=("resume.agreement",),
    ),
    Clause(
        slug="resume.stages-fit",
        level=Level.STRICT,
        sentence="refuses on every rank, before anything changes, a named checkpoint whose pipeline stages are not "
        "those of the run: one is missing, their number is another, or one of them is of another step",
        why="A stage that finds nothing keeps its random weights, or takes those of another step, "
        "and the model that results was never trained.",
        sometimes="checkpoints with a stage too few, with no stages, with stages for a run without, "
        "and with a stage of another step were named",
        capabilities=frozenset({"distributed", "pipeline", "explicit"}),
        rests_on=("resume.error-everywhere",),
    ),
    Clause(
        slug="resume.fits",
        level=Level.STRICT,
        sentence="refuses, naming the tensor, a checkpoint that has no value for a tensor of the model, "
        "or one of another shape",
        why="A load that takes what fits and passes over the rest goes on with layers at random, "
        "and with all of them where every name has changed; the loss tells it days later.",
        sometimes="a checkpoint was resumed by a model with a layer more, and by one with more outputs",
        rests_on=("resume.lands",),
    ),
    Clause(
        slug="resume.all-or-nothing",
        level=Level.STRICT,
        sentence="leaves model, optimizer, scheduler and random streams as they were when it refuses a load, "
        "be it for trust, for the freeze list, for an unreadable train state, for another model or for a loader that "
        "does not take its position",
        why="A caller that catches the error trains on with half a checkpoint.",
        sometimes="a load was refused after it could have read some of the state",
        capabilities=_TRAIN_STATE,
    ),
    Clause(
        slug="resume.error-everywhere",
        level=Level.STRICT,
        sentence="raises promptly on every rank what goes wrong on the one that reads",
        why="The others wait in a broadcast until the timeout: half an hour of the whole allocation for each attempt, "
        "and a log that blames the network.",
        sometimes="a load failed on one rank out of several",
        capabilities=frozenset({"distributed"}),
    ),
    Clause(
        slug="resume.reshard",
        level=Level.CORE,
        sentence="brings the same full values back on M ranks that were saved on N",
        why="A node that is lost or added would otherwise strand every checkpoint of the run.",
        sometimes="a checkpoint was loaded on more ranks and on fewer than had saved it",
        capabilities=frozenset({"distributed", "reshard"}),
        rests_on=("resume.lands",),
    ),
    Clause(
        slug="resume.damage",
        level=Level.STRICT,
        sentence="raises an error that names the file when a shard is truncated or has a flipped bit",
        why="Wrong weights load without a word, and all that is trained on them is lost when it comes out.",
        sometimes="a checkpoint was resumed with a shard cut short, and with a bit flipped inside its tensors",
        rests_on=("resume.lands",),
    ),
    Clause(
        slug="resume.continue",
        level=Level.STRICT,
        sentence="saves on after a fallback or a kill, over the debris and at the same steps too, "
        "and the next auto-resume lands on the new saves",
        why="A step whose torn directory blocks its own save can never be passed: "
        "the run repeats the same stretch at every restart, or trains on without a checkpoint.",
        sometimes="a run that had resumed beside a torn directory saved that same step, and later ones",
        rests_on=("resume.lands",),
    ),
)

RESERVED = frozenset({"step", "tokens_seen", "scheduler", "dataloader", "rng"})
"""The keys of the train state that a caller's extra must not use."""


@dataclass(frozen=True)
class Fresh:
    """The run starts from its initialisation."""


@dataclass(frozen=True)
class Step:
    """An auto-resume landed on the checkpoint of this step."""

    step: int


@dataclass(frozen=True)
class Named:
    """The caller named this path; it is loaded as it is, or an error is raised."""

    path: str


Outcome = Fresh | Step | Named


def may_land_on(complete: frozenset[int], latest: int | None) -> frozenset[int | None]:
    """Where an auto-resume may land; None stands for a fresh start.

    `latest` is the step that the pointer names, and None if there is no
    pointer or it names no step of the folder.

    >>> may_land_on(complete=frozenset({10, 20}), latest=10)
    frozenset({10})

    A torn target and a lost pointer both lead to the newest complete one:

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
    """What a load does.

    `explicit` is the path named in the call.  A load that excludes both model
    and optimizer reads no shards and stays with the pointer's target.

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


def after_kill(
    acknowledged: int | None, in_flight: int | None, dispatching: int | None = None
) -> frozenset[int | None]:
    """Where the next auto-resume may land after a kill; None stands for a fresh start.

    `acknowledged` is the step of the last commit that a returned call vouched
    for; `in_flight` the save that was dispatched after it.  If the kill came
    inside the call of yet another save, `dispatching` is its step: that call
    commits the one in flight, and may have got further.

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
