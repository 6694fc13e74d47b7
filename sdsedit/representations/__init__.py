"""What can be edited: anything that renders to a latent and can follow a direction in it."""
