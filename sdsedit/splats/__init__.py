"""Scenes of Gaussian splats: fitted to pictures, searched for words, edited by words."""
