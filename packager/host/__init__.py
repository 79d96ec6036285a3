"""The build host itself: what it lacks, and what it measures."""
