"""From image files and weights to predictions and scores."""
