"""What a training step stands for, in the programs that feed: it looks at each value of a batch once."""

FEATURES = [f"x{number:02d}" for number in range(16)]
COLUMNS = ["id", *FEATURES]
BATCH = 1024


class Sums:
    """The sums of all batches, exact: whole numbers in double precision."""

    def __init__(self):
        self.rows, self.ids, self.values = 0, 0, 0.0

    def add(self, ids, features):
        """One batch: two tensors (or arrays), (n,) and (n, 16)."""
        self.rows += len(ids)
        self.ids += int(ids.sum())
        self.values += float(features.double().sum() if hasattr(features, "double") else features.sum(dtype="float64"))

    def table(self):
        return {"table": [[self.rows, self.ids, int(self.values)]]}
