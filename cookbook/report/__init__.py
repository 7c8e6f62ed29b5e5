"""What people see of a run: the terminal, HTML pages, and trackers."""
