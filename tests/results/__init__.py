"""The figures of a finished run, recomputed from what it left behind by other code: one module for each recipe.

Run:     python -m tests.results horovod outputs/horovod/latest      (with the Python of the recipe's environment)

A module has:

- `recomputed(run, dataset)`: {figure: value, or [value, tolerance]} from the run's folder and its dataset's. It uses
  NumPy, pandas, scikit-learn or the framework's own reading and plain calls, and nothing of the recipe.
- `TOLERANCE`: how far a figure may be from what the run claims.
- `EXCEPT`: {figure: why it cannot be recomputed}.
- `BREAK`: (file, text, another text): a way to break the recipe so that it reports more than is true.
- `BROKEN`: the figures that are wrong then; all others must still agree.
- `SMALLEST`: settings of the shortest run that shows it.
- `MODES`, where the recipe has others: [(modes, their settings), ...]. The settings are those of runs that other tests
  look at, too.
"""
