"""Lets processes die, and calls fail, on real processes in the middle of a save.

drills    a fault in a situation, point by point, and the tally of what came of it
kinds     the kinds of death
failures  which call can fail with which errno, and what has to follow
loads     a resume that can't read, and what it may come to
full      a small disk that really fills; `small` starts a command on one
chain     death after death over one folder
plan      which drills there are for a manager
"""
