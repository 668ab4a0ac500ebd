"""Convolutions: with normalised weights, with factors and biases, with normalised inputs."""
