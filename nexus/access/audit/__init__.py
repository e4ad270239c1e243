"""The audit files of one nexus: written, synced, and fed from the store's outbox."""
