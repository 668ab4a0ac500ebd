"""Where a run's images come from: memory, folders, timm's data sets, streams."""
