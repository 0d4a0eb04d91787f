"""Finds every disk that the death of a manager can leave, and lets the manager resume from each.

calls      makes a stopped process's file calls in its place
trace      what was done to a folder, and the disks that it makes
recorder   answers the kernel filter: records every change, kills, fails or holds at an exact operation
ptrace     the same over ptrace, for kernels and containers without the filter's listener
sightings  a coarse one for everywhere else: looks at the folder before each change that Python announces
recorders  which of them works here, and what it leaves unseen
states     the disks that a trace can leave, after a kill and after a loss of power
facts      what a resume learns of a disk, and which disks share its outcome for that
recording  a run of the manager with its marks: which save begins, is acknowledged, fails
scenarios  what managers are put through while they are recorded
resume     one disk, one fresh process: where it came back, and whether it could go on
verdicts   what that is worth, and which clause falls
explorer   all disks of a recording
order      whether each thing was on storage before the next
story      a bad disk, shrunk and told
replay     the script that rebuilds it without the suite
report     terminal, JSON and a page
command    `forge-conformance crash`

Recorder, calls and trace need nothing but Linux and the standard library, and
can be used by themselves:

    journal = Journal(Path("folder"))
    pid, recorder = launch(["python", "train.py"], journal)
    recorder.wait()
    trace = journal.end()
    trace.disk(10)      # what a kill after ten effects leaves
"""
