"""What people look at: pictures of what detectors find."""
