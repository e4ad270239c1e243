"""The SDK of Shardhold."""
