"""Who talks: the agents that a tenant has."""
