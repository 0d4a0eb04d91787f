"""The suite's side: starts process lives, times their deaths, looks at what they leave.

server    the warm server and its workers, seen from here
worker    one process life: commands, errors, hangs, deaths
gate      answers the kernel filter: holds, observes, fails or lets go each file operation
folder    the checkpoint folder, looked at without the manager
judge     what a clause expected, what was seen, how often it was reached
scenario  what a test gets: lives, folder, gate, timeline and judge in one hand
"""
