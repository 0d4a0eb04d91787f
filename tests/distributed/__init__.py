"""The part of the suite for several ranks: each test drives 2 or 4 real processes that train one model together.

saves      what a save by several ranks is, and what becomes of it when one of them fails
resumes    who lands where, with what, and who hears of a refusal
deaths     ranks killed at file operations, one or all, and the run that goes on
launcher   the same as a user would start it: a script under torchrun, with restarts
gpu        what only an accelerator can show

Ranks find each other through files.  Every command to them is watched: one that
does not come to an end is a failure that shows where each rank stands.
"""
