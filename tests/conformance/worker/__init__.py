"""What runs in the manager's own Python: standard library, torch, the manager.

__main__        loads this package from its files, then becomes the server
channel         lines of JSON over a socket, file descriptors beside them
server          warm: imports everything once, then forks a worker per process life
implementation  finds what `--impl` names
drop_in         the adapter for managers with the drop-in API
workload        a training run that is deterministic to the bit
variety         the same with other optimizers and modules
practice        trains before lives are forked, so that each finds torch ready
commands        what a worker does when it is told to
filter          the kernel filter that hands file-changing system calls to the suite
"""
