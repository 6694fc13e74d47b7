"""Differentiable renderers."""
