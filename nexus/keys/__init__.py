"""The root key and all that it opens: keyring, envelopes, shard sets, and the manifest over the control rows."""
