"""Which processes save together.  For now that is one: this module says so before anything else happens.

Coordination of several ranks will live here, and here only: the rest of the
package asks this module and does not know how many ranks there are.
"""

import torch.distributed as dist


def require_one_rank(process_group: dist.ProcessGroup | None, pp_rank: int | None = None) -> None:
    """`NotImplementedError` for more than one rank or a pipeline stage, before any file is touched."""
    supported = "this version saves from one process without pipeline stages"
    if pp_rank is not None:
        raise NotImplementedError(f"pp_rank is {pp_rank}; {supported}: leave pp_rank out")
    if not (dist.is_available() and dist.is_initialized()):
        return
    world = dist.get_world_size(process_group)
    if world != 1:
        raise NotImplementedError(f"the process group has {world} ranks; {supported}: pass a group of one rank")
