"""Speed and memory, as ratios to a named peer in one interleaved run."""
