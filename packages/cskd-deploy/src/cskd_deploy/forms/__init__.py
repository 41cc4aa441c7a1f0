"""Every form of a student that this machine can make and run, measured side by side."""
