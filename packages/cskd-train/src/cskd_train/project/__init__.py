"""A project of the user's own: data in normal form, configs of teacher and student, and what was chosen and why."""
