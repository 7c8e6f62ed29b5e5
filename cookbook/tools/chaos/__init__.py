"""Hurts a run, and sees whether it recovers.

    make chaos RECIPE=pytorch FAULTS="kill@step=7,rank=1 driver_kill@step=60%"
    make chaos RECIPE=pytorch FAULTS=each                  every fault that can happen there, each in a run of its own
    make chaos RECIPE=pytorch FAULTS=random:5 SEED=3       five faults that the seed chooses
    make chaos FAULTS=help                                 all faults

The recipe runs undisturbed once, and then with the faults. When it fails, the same command is started again, as a user
would. At the end stands what it cost, and whether the result is the same.
"""
