"""The commands of `forge-conformance`: each adds its options to a parser, and runs.

Commands are called by `cli` and imported by nobody else.
"""
