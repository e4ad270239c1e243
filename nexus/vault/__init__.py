"""What workloads ask for: secrets; each call goes through the gate."""
