"""Watches what processes do to a folder, and stops them at an exact operation.

listener  receives each system call that the kernel filter hands over, and answers it
gate      holds, observes or fails the file operations of one worker
recorder  records every change of a folder; kills, fails or holds at an exact operation
ptrace    the same over ptrace, for kernels and containers without the filter's listener
audit     a coarse recorder for everywhere else: looks at the folder before each change that Python announces
backends  which recorder works here, and what it leaves unseen
caller    makes a stopped process's file calls in its place
trace     what was done to a folder, and the disks that it makes
history   what each of several ranks did, had heard and had found
causes    what one rank may have learnt from another
facts     what a process learns of a folder, and which disks share an outcome for that

The table of system calls is `worker.system_calls`.  A recorder needs nothing but
Linux and the standard library, and can be used by itself:

    journal = Journal(Path("folder"))
    pid, recorder = launch(["python", "train.py"], journal)
    recorder.wait()
    trace = journal.end()
    trace.disk(10)      # what a kill after ten effects leaves
"""
