"""Where an edit belongs: which words are new (words), what the model sees in them (probe), the mask (localize)."""
