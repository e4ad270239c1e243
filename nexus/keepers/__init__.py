"""The keepers as the nexus sees them: a thread and a seat for each, and the marks they remember."""
