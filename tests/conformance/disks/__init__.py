"""Finds every disk that the death of a manager can leave, resumes from each, and explains the bad ones.

scenarios      what managers are put through while they are recorded
recording      a run of the manager with its marks: which save begins, is acknowledged, fails
orders         the other orders in which several ranks may have done the same
states         the disks that a trace can leave, after a kill and after a loss of power
resumer        one disk, fresh processes: where they landed, and whether they could go on
explorer       all disks of a recording
reader         what a disk holds in the words of a layout
durable_order  whether each thing was on storage before the next
model_path     whether a recording is a path of the specification's model
story          a bad disk, shrunk and explained
replay         the script that rebuilds it without the suite
job            one scenario in one mode, from the recording to the result
result         what came of it
"""
