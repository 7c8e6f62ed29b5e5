"""What a run needs before its workers start: tools, environments, datasets, and clean surroundings."""
