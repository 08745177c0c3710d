"""What is on disk, held against what was published, planned, and computed."""
