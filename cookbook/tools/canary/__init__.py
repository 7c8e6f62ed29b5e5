"""Tries newer versions than a recipe's lock has, in a copy of the checkout; finds the upgrade that breaks the recipe.

    make canary RECIPE=dask [HISTORY=history.jsonl] [MINUTES=40]

Two things are tried with each requirements.in of a recipe: the newest versions that it allows, and one step beyond
each of its limits (the next release after `==2.13.0`, the first one that `<2.4` forbids). The recipe runs at
`scale=smoke` with them. If it breaks, bisection finds the upgrade. The outcome is a proposal: it is printed, and
appended to the history for `make health`. Nothing in this checkout changes, and the exit status is always 0.
"""
