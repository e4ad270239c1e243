"""What people ask of the cluster: init, unseal, seal, policies and status; each call goes through the gate."""
