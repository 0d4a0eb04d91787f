"""Starts the manager's processes, drives them, times their deaths, and looks at what they leave.

server     the warm server and its workers, seen from here
process    one worker: commands, errors, hangs, deaths
group      the workers of one run, one or several ranks, driven side by side
folder     the checkpoint folder, looked at without the manager
cases      checkpoint folders that others wrote
state      fingerprints of training state
timeline   the run that nothing disturbs
life       the processes of a scenario, and the story of what they did
hooks      processes whose training loop calls hooks, which save and remove
scenario   what a test gets: processes, folder, timeline and judge in one hand
ledger     what was saved, what became of it, and what may be resumed from
landing    where a resume landed
verdict    what that is worth, and which clause fails
team       processes over one folder that save, die, resume and go on
workplace  a warm server, a folder and the undisturbed run, to try a manager in
ways       which way of working an adapter names, and what a test then does
machine    whether this machine has what it takes to judge
janitor    folders that are gone when their command is
sources    a fingerprint of the code that is judged, and of the suite
"""
