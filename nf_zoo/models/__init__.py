"""One page per method: citation, equation, block, initialisation, variants."""
