"""What people look at: a page on a run, a model card, pictures of what detectors find."""
