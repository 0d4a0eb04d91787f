"""Finds every disk that the death of a manager can leave, and resumes from each; and lets it die and fail in earnest.

calls          makes a stopped process's file calls in its place
trace          what was done to a folder, and the disks that it makes
recorder       answers the kernel filter: records every change, kills, fails or holds at an exact operation
ptrace         the same over ptrace, for kernels and containers without the filter's listener
sightings      a coarse one for everywhere else: looks at the folder before each change that Python announces
recorders      which of them works here, and what it leaves unseen
states         the disks that a trace can leave, after a kill and after a loss of power
facts          what a resume learns of a disk, and which disks share its outcome for that
interleavings  the other orders in which several ranks may have done the same
causes         what one rank may have learnt from another
processes      the processes of one run, one or several ranks
recording      a run of the manager with its marks: which save begins, is acknowledged, fails
scenarios      what managers are put through while they are recorded
resume         one disk, one fresh process: where it came back, and whether it could go on
verdicts       what that is worth, and which clause falls
explorer       all disks of a recording
checkpoints    what a disk holds in the words of a layout
order          whether each thing was on storage before the next
path           whether a recording is a path of the specification's model
story          a bad disk, shrunk and told
replay         the script that rebuilds it without the suite
report         terminal, JSON and a page
command        `forge-conformance crash`

live       processes that save, die and resume in earnest, and what may come back
drills     a mishap in a situation, point by point, and the tally of what came of it
deaths     the kinds of death
failures   which call can fail with which errno, and what has to follow
full       a small disk that really fills; `small` starts a command on one
debris     death after death over one folder
earnest    which drills there are for a manager

Recorder, calls and trace need nothing but Linux and the standard library, and
can be used by themselves:

    journal = Journal(Path("folder"))
    pid, recorder = launch(["python", "train.py"], journal)
    recorder.wait()
    trace = journal.end()
    trace.disk(10)      # what a kill after ten effects leaves
"""
