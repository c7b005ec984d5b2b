"""What a job leaves in its folder, as RELION's jobs do."""
