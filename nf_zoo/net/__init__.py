"""The network that all methods share: plan, parts, timm's contract, registration."""
