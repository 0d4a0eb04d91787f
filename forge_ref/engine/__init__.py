"""Brings the values of a rank to storage and back, at the speed of the memory and of the disk.

    leaves       a state as names and values; which of them have a fixed place in the file
    containers   what `torch.save` writes around the bytes of a tensor, so that stock DCP reads them
    image        one rank's file of shards as it lies in memory: a save is one copy into it
    table        the hash of each piece, at the end of its file
    flush        large direct writes, or buffered ones where direct ones are refused
    loose        values that change their size, behind the image
    writing      a rank's part of a save of ranks that write together
    lead         the first rank's: who writes what, computed once for an unchanged state, and the marker
    reading      pieces into fresh memory, verified while they pass by

    __R_0.distcp = one container for each tensor at a multiple of 64 bytes, then, from a multiple
                   of 4,096 on, values that change their size, and the table

Invariants: the staging buffer *is* the file, so nothing is copied between a save and the disk;
whatever is not known to be as it was at the last save is computed anew, so nothing stale is
written; and a byte that reaches a tensor has the hash that was computed at the save.
"""
