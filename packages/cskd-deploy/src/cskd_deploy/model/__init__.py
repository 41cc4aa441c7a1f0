"""What a model file says of itself: its manifest, and what is looked at before a runtime opens it."""
