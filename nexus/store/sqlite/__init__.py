"""The embedded store: one SQLite file, held by one nexus."""
