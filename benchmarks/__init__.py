"""What measures each recipe against the bare framework. Run: make bench RECIPE=pytorch"""
