"""`dcp.load` runs the code that a `.metadata` file asks for, whoever wrote it, and shows no sign of it."""

import operator
import os
import pickle
import sys
import tempfile
import warnings

try:
    import torch
    import torch.distributed.checkpoint as dcp
except ImportError as missing:
    print(f"can't run: {missing}")
    sys.exit(3)

warnings.simplefilter("ignore")

_NOBODY = 65534


class Call:
    """Pickled, a call of a function that is made when the pickle is loaded."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        trace, metadata = os.path.join(folder, "made-by-the-metadata"), os.path.join(folder, "step_100", ".metadata")
        dcp.save({"weight": torch.ones(2)}, checkpoint_id=os.path.dirname(metadata))
        with open(metadata, "rb") as file:
            real = pickle.load(file)
        with open(metadata, "wb") as file:
            pickle.dump(Call(operator.getitem, [Call(os.mkdir, trace), real], 1), file)
        print(".metadata was replaced by a pickle that calls os.mkdir, and is the real metadata besides")
        if os.geteuid() == 0:
            os.chown(metadata, _NOBODY, _NOBODY)
            print("its owner is another user")
        state = {"weight": torch.zeros(2)}
        try:
            dcp.load(state, checkpoint_id=os.path.dirname(metadata))
            print(f"dcp.load returned with the right values: {state['weight'].tolist()}")
        except BaseException as error:  # the errors of DCP are no subclass of Exception
            print(f"dcp.load raised {type(error).__name__}")
        has_run = os.path.isdir(trace)
        print(f"the call was {'' if has_run else 'not '}made")
        try:
            torch.load(metadata)
        except pickle.UnpicklingError:
            print("torch.load refuses the same file")
    return 1 if has_run else 0


if __name__ == "__main__":
    sys.exit(main())
