"""The suite judged by mutants: managers with one mistake each, every one of which has to fail, and by the right clause.

mutants     what a mutant's file says of it
trial       one mutant, judged in a fork of a warm server
assertions  each assertion of the suite, and which were seen to fail
outcome     what became of each, and what that says of the suite
"""
